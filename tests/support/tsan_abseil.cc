// Tells ThreadSanitizer of Abseil's locks. Debian's libraries are not instrumented, so that to it nothing that one of
// them guards would be guarded: neither our data, nor what gRPC, whose own locks these are too, hands from one thread
// to another. A program that links this calls these functions instead, and so do the libraries; each calls the real
// one.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include "absl/base/options.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace {

#define STRING_OF(text) #text
#define STRING(text) STRING_OF(text)
// In Debian 12 and 13 the namespace of this version has seven letters.
#define MANGLED(prefix, name) prefix "4absl7" STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME) name

// Thread-safe before main, too: what dlsym gives is the same each time.
#define REAL(name, signature)                               \
  (__extension__({                                          \
    static void* real = nullptr;                            \
    void* found = __atomic_load_n(&real, __ATOMIC_RELAXED); \
    if (found == nullptr) {                                 \
      found = dlsym(RTLD_NEXT, name);                       \
      __atomic_store_n(&real, found, __ATOMIC_RELAXED);     \
    }                                                       \
    reinterpret_cast<signature>(found);                     \
  }))

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  REAL(MANGLED("_ZN", "5Mutex4LockEv"), void (*)(Mutex*))(this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  __tsan_release(this);
  REAL(MANGLED("_ZN", "5Mutex6UnlockEv"), void (*)(Mutex*))(this);
}

bool Mutex::TryLock() {
  const bool taken = REAL(MANGLED("_ZN", "5Mutex7TryLockEv"), bool (*)(Mutex*))(this);
  if (taken) {
    __tsan_acquire(this);
  }
  return taken;
}

void Mutex::ReaderLock() {
  REAL(MANGLED("_ZN", "5Mutex10ReaderLockEv"), void (*)(Mutex*))(this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  __tsan_release(this);
  REAL(MANGLED("_ZN", "5Mutex12ReaderUnlockEv"), void (*)(Mutex*))(this);
}

void Mutex::Await(const Condition& condition) {
  // Whoever unlocks evaluates it, with the lock held, where nothing of the above is called.
  struct Annotated {
    Mutex* const mutex;
    const Condition* const condition;
    bool Eval() const {
      __tsan_acquire(mutex);
      const bool holds = condition->Eval();
      __tsan_release(mutex);
      return holds;
    }
  };
  const Annotated annotated = {this, &condition};
  __tsan_release(this);
  REAL(MANGLED("_ZN", "5Mutex5AwaitERKNS0_9ConditionE"), void (*)(Mutex*, const Condition&))
  (this, Condition(&annotated, &Annotated::Eval));
  __tsan_acquire(this);
}

void CondVar::Wait(Mutex* mutex) {
  __tsan_release(mutex);
  REAL(MANGLED("_ZN", "7CondVar4WaitEPNS0_5MutexE"), void (*)(CondVar*, Mutex*))(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  __tsan_release(mutex);
  const bool late = REAL(MANGLED("_ZN", "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"),
                         bool (*)(CondVar*, Mutex*, Time))(this, mutex, deadline);
  __tsan_acquire(mutex);
  return late;
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  __tsan_release(mutex);
  const bool late = REAL(MANGLED("_ZN", "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"),
                         bool (*)(CondVar*, Mutex*, Duration))(this, mutex, timeout);
  __tsan_acquire(mutex);
  return late;
}

void Notification::Notify() {
  __tsan_release(this);
  REAL(MANGLED("_ZN", "12Notification6NotifyEv"), void (*)(Notification*))(this);
}

void Notification::WaitForNotification() const {
  REAL(MANGLED("_ZNK", "12Notification19WaitForNotificationEv"), void (*)(const Notification*))(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  const bool notified = REAL(MANGLED("_ZNK", "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE"),
                             bool (*)(const Notification*, Duration))(this, timeout);
  __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  const bool notified = REAL(MANGLED("_ZNK", "12Notification31WaitForNotificationWithDeadlineENS0_4TimeE"),
                             bool (*)(const Notification*, Time))(this, deadline);
  __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
