// Whether a sanitizer of memory or threads is built in: it takes many times the memory and the time.
#ifndef EMBERGATE_TESTS_SUPPORT_SANITIZED_H_
#define EMBERGATE_TESTS_SUPPORT_SANITIZED_H_

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define EMBERGATE_UNDER_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define EMBERGATE_UNDER_SANITIZER 1
#endif
#endif

namespace embergate::test {

#ifdef EMBERGATE_UNDER_SANITIZER
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_SANITIZED_H_
