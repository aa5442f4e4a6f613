#include "storage/crc32c.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "storage/crc32c_folding.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace embergate::storage {
namespace {

// Values below are CRC registers without the inversions. In the reflected form bit 31 is the coefficient of x^0.
using Table = std::array<uint32_t, 256>;

constexpr std::array<Table, 8> MakeSliceTables() {
  std::array<Table, 8> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCrc32cPolynomial : 0);
    }
    tables[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i) {
    for (size_t k = 1; k < 8; ++k) {
      tables[k][i] = (tables[k - 1][i] >> 8) ^ tables[0][tables[k - 1][i] & 0xff];
    }
  }
  return tables;
}
constexpr std::array<Table, 8> kSlice = MakeSliceTables();

uint64_t LoadLittle64(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof(value));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  value = __builtin_bswap64(value);
#endif
  return value;
}

// Eight bytes per step through eight tables.
uint32_t UpdateTables(uint32_t crc, const uint8_t* p, size_t n) {
  for (; n >= 8; p += 8, n -= 8) {
    const uint64_t word = LoadLittle64(p) ^ crc;
    crc = kSlice[7][word & 0xff] ^ kSlice[6][(word >> 8) & 0xff] ^ kSlice[5][(word >> 16) & 0xff] ^
          kSlice[4][(word >> 24) & 0xff] ^ kSlice[3][(word >> 32) & 0xff] ^ kSlice[2][(word >> 40) & 0xff] ^
          kSlice[1][(word >> 48) & 0xff] ^ kSlice[0][word >> 56];
  }
  for (; n > 0; ++p, --n) {
    crc = (crc >> 8) ^ kSlice[0][(crc ^ *p) & 0xff];
  }
  return crc;
}

#if defined(__x86_64__) || defined(__aarch64__)
#define EMBERGATE_HAS_CRC_INSTRUCTION 1

// The crc instruction has a latency of 3 cycles and a throughput of 1, so one chain reaches a third of what three
// independent chains do. Three lanes of `lane` bytes are joined by advancing a lane's register over the zeros that
// stand for the bytes after it; that is linear, hence four look-ups in tables made for that length.
struct ZeroShift {
  std::array<Table, 4> tables{};
};

constexpr ZeroShift MakeZeroShift(size_t bytes) {
  // columns[i] = the register 1 << i after `bytes` zero bytes, by repeated squaring of the one-byte operator.
  std::array<uint32_t, 32> power{};
  for (uint32_t i = 0; i < 32; ++i) {
    uint32_t crc = uint32_t{1} << i;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kCrc32cPolynomial : 0);
    }
    power[i] = crc;
  }
  const auto apply = [](const std::array<uint32_t, 32>& columns, uint32_t value) {
    uint32_t out = 0;
    for (uint32_t i = 0; i < 32; ++i) {
      if (((value >> i) & 1) != 0) {
        out ^= columns[i];
      }
    }
    return out;
  };
  std::array<uint32_t, 32> columns{};
  for (uint32_t i = 0; i < 32; ++i) {
    columns[i] = uint32_t{1} << i;
  }
  for (size_t n = bytes; n > 0; n >>= 1) {
    if ((n & 1) != 0) {
      for (uint32_t& column : columns) {
        column = apply(power, column);
      }
    }
    std::array<uint32_t, 32> squared{};
    for (uint32_t i = 0; i < 32; ++i) {
      squared[i] = apply(power, power[i]);
    }
    power = squared;
  }
  ZeroShift shift;
  for (uint32_t k = 0; k < 4; ++k) {
    for (uint32_t b = 0; b < 256; ++b) {
      shift.tables[k][b] = apply(columns, b << (8 * k));
    }
  }
  return shift;
}

uint32_t Advance(const ZeroShift& shift, uint32_t crc) {
  return shift.tables[0][crc & 0xff] ^ shift.tables[1][(crc >> 8) & 0xff] ^ shift.tables[2][(crc >> 16) & 0xff] ^
         shift.tables[3][crc >> 24];
}

// Assembly rather than intrinsics: no header, no per-file architecture flags, the same for both compilers.
inline uint64_t Step8(uint64_t crc, uint64_t word) {
#if defined(__x86_64__)
  asm("crc32q %1, %0" : "+r"(crc) : "rm"(word));
#else
  asm(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
#endif
  return crc;
}
inline uint32_t Step1(uint32_t crc, uint8_t byte) {
#if defined(__x86_64__)
  asm("crc32b %1, %0" : "+r"(crc) : "rm"(byte));
#else
  asm(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(static_cast<uint32_t>(byte)));
#endif
  return crc;
}

// Three lanes of kLane bytes, 3 * kLane in all; copies them to `to` if kCopy. `left`: readable bytes from p on.
template <size_t kLane, bool kCopy>
uint32_t ThreeLanes(const ZeroShift& shift, uint32_t crc, const uint8_t* p, size_t left, uint8_t* to) {
  uint64_t a = crc;
  uint64_t b = 0;
  uint64_t c = 0;
  for (size_t i = 0; i < kLane; i += 64) {
    for (size_t lane = 0; lane < 3; ++lane) {
      const size_t ahead = lane * kLane + i + kCrc32cPrefetchBytes;
      if (ahead < left) {
        __builtin_prefetch(p + ahead);
        if constexpr (kCopy) {
          __builtin_prefetch(to + ahead, 1);
        }
      }
    }
    for (size_t k = i; k < i + 64; k += 8) {
      const uint64_t x = LoadLittle64(p + k);
      const uint64_t y = LoadLittle64(p + kLane + k);
      const uint64_t z = LoadLittle64(p + 2 * kLane + k);
      a = Step8(a, x);
      b = Step8(b, y);
      c = Step8(c, z);
      if constexpr (kCopy) {
        std::memcpy(to + k, &x, 8);
        std::memcpy(to + kLane + k, &y, 8);
        std::memcpy(to + 2 * kLane + k, &z, 8);
      }
    }
  }
  return Advance(shift, Advance(shift, static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
}

// Fewer bytes than lanes are worth.
template <bool kCopy>
uint32_t UpdateRest(uint32_t crc, const uint8_t* p, size_t n, uint8_t* to) {
  if constexpr (kCopy) {
    std::memcpy(to, p, n);
  }
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) {
    wide = Step8(wide, LoadLittle64(p));
  }
  crc = static_cast<uint32_t>(wide);
  for (; n > 0; ++p, --n) {
    crc = Step1(crc, *p);
  }
  return crc;
}

template <bool kCopy>
uint32_t UpdateInstruction(uint32_t crc, const uint8_t* p, size_t n, uint8_t* to) {
  constexpr size_t kLong = 512;
  constexpr size_t kShort = 64;
  static constexpr ZeroShift kLongShift = MakeZeroShift(kLong);
  static constexpr ZeroShift kShortShift = MakeZeroShift(kShort);
  const auto advance = [&](size_t step) {
    p += step;
    n -= step;
    if constexpr (kCopy) {
      to += step;
    }
  };
  while (n >= 3 * kLong) {
    crc = ThreeLanes<kLong, kCopy>(kLongShift, crc, p, n, to);
    advance(3 * kLong);
  }
  while (n >= 3 * kShort) {
    crc = ThreeLanes<kShort, kCopy>(kShortShift, crc, p, n, to);
    advance(3 * kShort);
  }
  return UpdateRest<kCopy>(crc, p, n, to);
}

bool HasInstruction() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2") != 0;
#else
  return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}

uint32_t CrcByInstruction(absl::Span<const uint8_t> data, uint32_t crc) {
  return ~UpdateInstruction<false>(~crc, data.data(), data.size(), nullptr);
}
uint32_t CopyByInstruction(uint8_t* to, absl::Span<const uint8_t> from, uint32_t crc) {
  return ~UpdateInstruction<true>(~crc, from.data(), from.size(), to);
}
#endif  // x86_64 or AArch64

#if defined(__x86_64__)
template <bool kCopy>
uint32_t UpdateFolding(uint32_t crc, const uint8_t* p, size_t n, uint8_t* to) {
  if (n < kFoldBytesMin) {
    return UpdateInstruction<kCopy>(crc, p, n, to);
  }
  const Folded folded = Fold(crc, p, n, to);
  crc = static_cast<uint32_t>(Step8(Step8(0, folded.first), folded.second));
  if constexpr (kCopy) {
    to += folded.bytes;
  }
  return UpdateRest<kCopy>(crc, p + folded.bytes, n - folded.bytes, to);
}

uint32_t CrcByFolding(absl::Span<const uint8_t> data, uint32_t crc) {
  return ~UpdateFolding<false>(~crc, data.data(), data.size(), nullptr);
}
uint32_t CopyByFolding(uint8_t* to, absl::Span<const uint8_t> from, uint32_t crc) {
  return ~UpdateFolding<true>(~crc, from.data(), from.size(), to);
}
#endif

uint32_t CopyByTables(uint8_t* to, absl::Span<const uint8_t> from, uint32_t crc) {
  std::memcpy(to, from.data(), from.size());
  return Crc32cPortable(from, crc);
}

struct BackendList {
  std::array<Crc32cBackend, 3> backends{};
  size_t count = 0;

  BackendList() {
#ifdef EMBERGATE_HAS_CRC_INSTRUCTION
    if (HasInstruction()) {
#if defined(__x86_64__)
      if (HasFolding()) {
        backends[count++] = {"vpclmulqdq", CrcByFolding, CopyByFolding};
      }
      backends[count++] = {"sse4.2", CrcByInstruction, CopyByInstruction};
#else
      backends[count++] = {"armv8-crc", CrcByInstruction, CopyByInstruction};
#endif
    }
#endif
    backends[count++] = {"tables", Crc32cPortable, CopyByTables};
  }
};

}  // namespace

void PrefetchCopy(uint8_t* to, absl::Span<const uint8_t> from) {
  constexpr size_t kBytes = 2048;
  for (size_t i = 0; i < std::min(kBytes, from.size()); i += 64) {
    __builtin_prefetch(from.data() + i);
    __builtin_prefetch(to + i, 1);
  }
}

uint32_t Crc32cPortable(absl::Span<const uint8_t> data, uint32_t crc) {
  return ~UpdateTables(~crc, data.data(), data.size());
}

absl::Span<const Crc32cBackend> Crc32cBackends() {
  static const BackendList list;
  return absl::MakeConstSpan(list.backends).first(list.count);
}

uint32_t Crc32c(absl::Span<const uint8_t> data, uint32_t crc) {
  static const auto fastest = Crc32cBackends().front().crc;
  return fastest(data, crc);
}

uint32_t CopyWithCrc32c(uint8_t* to, absl::Span<const uint8_t> from, uint32_t crc) {
  static const auto fastest = Crc32cBackends().front().copy;
  return fastest(to, from, crc);
}

}  // namespace embergate::storage
