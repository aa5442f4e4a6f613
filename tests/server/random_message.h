// Protobuf messages of any type with random contents: what a client might send that means well, or does not.
#ifndef EMBERGATE_TESTS_SERVER_RANDOM_MESSAGE_H_
#define EMBERGATE_TESTS_SERVER_RANDOM_MESSAGE_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <limits>
#include <random>
#include <string>
#include <vector>

namespace embergate::server {

class RandomMessages {
 public:
  explicit RandomMessages(uint64_t seed) : random_(seed) {}

  // Sets about `share` of the fields, at every depth, half of them to values that are likely to be good.
  void Fill(google::protobuf::Message& message, double share, int depth = 0) {
    const google::protobuf::Reflection& reflection = *message.GetReflection();
    const google::protobuf::Descriptor& type = *message.GetDescriptor();
    for (int i = 0; i < type.field_count(); ++i) {
      const google::protobuf::FieldDescriptor& field = *type.field(i);
      if (depth > 6 || !Chance(share)) {
        continue;
      }
      const size_t count = field.is_repeated() ? (Chance(0.02) ? 1500 : Below(5)) : 1;
      for (size_t k = 0; k < count; ++k) {
        Set(message, reflection, field, share, depth);
      }
    }
  }

  bool Chance(double chance) { return static_cast<double>(random_() >> 11) * 0x1p-53 < chance; }
  size_t Below(size_t bound) { return static_cast<size_t>(random_() % bound); }

 private:
  using Field = google::protobuf::FieldDescriptor;

  void Set(google::protobuf::Message& message, const google::protobuf::Reflection& reflection, const Field& field,
           double share, int depth) {
    const bool add = field.is_repeated();
    switch (field.cpp_type()) {
      case Field::CPPTYPE_MESSAGE: {
        google::protobuf::Message* const inner =
            add ? reflection.AddMessage(&message, &field) : reflection.MutableMessage(&message, &field);
        Fill(*inner, share, depth + 1);
        return;
      }
      case Field::CPPTYPE_STRING:
        add ? reflection.AddString(&message, &field, Text()) : reflection.SetString(&message, &field, Text());
        return;
      case Field::CPPTYPE_BOOL:
        add ? reflection.AddBool(&message, &field, Chance(0.5)) : reflection.SetBool(&message, &field, Chance(0.5));
        return;
      case Field::CPPTYPE_ENUM:
        add ? reflection.AddEnumValue(&message, &field, Enum()) : reflection.SetEnumValue(&message, &field, Enum());
        return;
      case Field::CPPTYPE_INT32:
        add ? reflection.AddInt32(&message, &field, Integer<int32_t>())
            : reflection.SetInt32(&message, &field, Integer<int32_t>());
        return;
      case Field::CPPTYPE_INT64:
        add ? reflection.AddInt64(&message, &field, Integer<int64_t>())
            : reflection.SetInt64(&message, &field, Integer<int64_t>());
        return;
      case Field::CPPTYPE_UINT32:
        add ? reflection.AddUInt32(&message, &field, Integer<uint32_t>())
            : reflection.SetUInt32(&message, &field, Integer<uint32_t>());
        return;
      case Field::CPPTYPE_UINT64:
        add ? reflection.AddUInt64(&message, &field, Integer<uint64_t>())
            : reflection.SetUInt64(&message, &field, Integer<uint64_t>());
        return;
      case Field::CPPTYPE_FLOAT:
        add ? reflection.AddFloat(&message, &field, static_cast<float>(Real()))
            : reflection.SetFloat(&message, &field, static_cast<float>(Real()));
        return;
      case Field::CPPTYPE_DOUBLE:
        add ? reflection.AddDouble(&message, &field, Real()) : reflection.SetDouble(&message, &field, Real());
        return;
    }
  }

  template <typename T>
  T Integer() {
    if (Chance(0.7)) {
      return static_cast<T>(Below(Chance(0.5) ? 4 : 200));
    }
    constexpr T kEdges[] = {std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), static_cast<T>(-1),
                            static_cast<T>(511),           static_cast<T>(512),           static_cast<T>(1 << 20)};
    return Chance(0.7) ? kEdges[Below(std::size(kEdges))] : static_cast<T>(random_());
  }
  int Enum() { return Chance(0.8) ? static_cast<int>(Below(6)) : Integer<int32_t>(); }
  double Real() {
    constexpr double kEdges[] = {0,
                                 1,
                                 -1,
                                 1e-45,
                                 1e30,
                                 std::numeric_limits<double>::infinity(),
                                 -std::numeric_limits<double>::infinity(),
                                 std::numeric_limits<double>::quiet_NaN()};
    return Chance(0.7) ? static_cast<double>(Below(1000)) * 1e-3 : kEdges[Below(std::size(kEdges))];
  }
  std::string Text() {
    static const std::vector<std::string> kParts = {"",
                                                    "Hello",
                                                    " ",
                                                    "\n",
                                                    "<|turn>",
                                                    "<bos>",
                                                    "{\"type\":\"object\"}",
                                                    "[1,{\"a\":[]}]",
                                                    "\xF0\x9F\x99\x82",
                                                    "\xE2\x96\x81",
                                                    std::string(1, '\0'),
                                                    std::string(300, 'x'),
                                                    std::string(200, '['),
                                                    "read"};
    std::string text;
    for (size_t i = Below(4); i < 4; ++i) {
      text += kParts[Below(kParts.size())];
    }
    return Chance(0.01) ? std::string(100'000, 'y') : text;
  }

  std::mt19937_64 random_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_TESTS_SERVER_RANDOM_MESSAGE_H_
