// Files whose tensors and metadata disagree, or that ask for the absurd: each is refused with an error that names
// what is wrong; and the variations that real files show are taken.
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/gguf_edit.h"
#include "tests/engine/model/model_fixture.h"

namespace embergate::engine {
namespace {

using storage::TensorType;
using testing::AllOf;
using testing::HasSubstr;

absl::Status LoadEdited(const std::string& golden, const GgufEdit& edit,
                        const DecoderOptions& options = TestOptions()) {
  const TempDir folder;
  const std::string path = folder.File("edited.gguf");
  EditGguf(GoldenGguf(golden), path, edit);
  auto file = storage::GgufFile::Open(path);
  if (!file.ok()) {
    return file.status();
  }
  ThreadPool pool(1);
  const absl::Status planned = DecoderModel::Plan(**file, options).status();
  const absl::Status described = DecoderModel::Describe(**file).status();
  const absl::Status loaded = DecoderModel::Load(**file, options, pool, {}).status();
  // Plan and Describe load nothing, but whatever they refuse, Load refuses in the same words.
  if (!described.ok()) {
    EXPECT_EQ(planned, described);
    EXPECT_EQ(loaded, described);
  }
  return loaded;
}

void ExpectRefused(const std::string& golden, const GgufEdit& edit, absl::StatusCode code,
                   const std::vector<std::string>& words) {
  const absl::Status status = LoadEdited(golden, edit);
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& word : words) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  }
}

constexpr char kG4[] = "gemma4-tiny-e2b";
constexpr char kG3n[] = "gemma3n-tiny-e2b";
constexpr absl::StatusCode kMismatch = absl::StatusCode::kFailedPrecondition;

TEST(MalformedModelTest, EveryMissingTensorIsNamed) {
  for (const char* golden : {kG4, kG3n}) {
    auto file = storage::GgufFile::Open(GoldenGguf(golden));
    ASSERT_TRUE(file.ok());
    int refused = 0;
    for (const storage::GgufTensor& tensor : (*file)->tensors()) {
      // One layer stands for all; optional ones are tested below.
      const bool other_layer = tensor.name.rfind("blk.", 0) == 0 && tensor.name.rfind("blk.4.", 0) != 0;
      if (other_layer || tensor.name == "rope_freqs.weight" || tensor.name == "blk.4.layer_output_scale.weight" ||
          (tensor.name == "blk.4.attn_v.weight" && std::string(golden) == kG4)) {
        continue;
      }
      GgufEdit edit;
      edit.drop_tensors = {tensor.name};
      ExpectRefused(golden, edit, kMismatch, {tensor.name, "missing"});
      ++refused;
    }
    EXPECT_GT(refused, 15);
  }
}

TEST(MalformedModelTest, EveryWrongShapeIsNamedWithBothShapes) {
  for (const char* golden : {kG4, kG3n}) {
    auto file = storage::GgufFile::Open(GoldenGguf(golden));
    ASSERT_TRUE(file.ok());
    for (const storage::GgufTensor& tensor : (*file)->tensors()) {
      const bool other_layer = tensor.name.rfind("blk.", 0) == 0 && tensor.name.rfind("blk.4.", 0) != 0;
      if (other_layer || tensor.name == "token_embd.weight" || tensor.name == "blk.4.laurel_l.weight") {
        continue;  // the vocabulary and the rank follow from these
      }
      GgufEdit edit;
      std::vector<uint64_t> dims = tensor.dims;
      dims.back() += 1;
      if (tensor.name == "per_layer_token_embd.weight") {
        dims = {tensor.dims[0] + 32, tensor.dims[1]};
      }
      edit.shapes[tensor.name] = dims;
      ExpectRefused(golden, edit, kMismatch, {tensor.name, absl::StrCat(dims[0])});
    }
  }
}

TEST(MalformedModelTest, UnservedTypesAreRefusedByName) {
  GgufEdit edit;
  edit.types["blk.3.ffn_up.weight"] = TensorType::kF64;
  ExpectRefused(kG4, edit, absl::StatusCode::kUnimplemented, {"blk.3.ffn_up.weight", "F64"});
  edit = GgufEdit();
  edit.types["per_layer_token_embd.weight"] = TensorType::kI32;
  ExpectRefused(kG4, edit, absl::StatusCode::kUnimplemented, {"per_layer_token_embd.weight", "I32"});
}

TEST(MalformedModelTest, UnservedArchitecturesAreRefusedWithTheListOfServedOnes) {
  GgufEdit edit;
  edit.strings["general.architecture"] = "llama";
  ExpectRefused(kG4, edit, absl::StatusCode::kUnimplemented, {"llama", "gemma4", "gemma3n"});
  edit = GgufEdit();
  edit.drop_keys = {"general.architecture"};
  ExpectRefused(kG4, edit, kMismatch, {"general.architecture"});
}

TEST(MalformedModelTest, AbsurdMetadataIsRefused) {
  const int32_t huge = std::numeric_limits<int32_t>::max();
  for (const char* key : {"block_count", "embedding_length", "context_length", "attention.head_count",
                          "attention.head_count_kv", "attention.key_length", "attention.key_length_swa",
                          "attention.value_length", "attention.sliding_window", "attention.shared_kv_layers",
                          "embedding_length_per_layer_input", "feed_forward_length", "rope.dimension_count"}) {
    for (const int32_t value : {huge, -1, 0, 7}) {
      const std::string name = absl::StrCat("gemma4.", key);
      if ((value == 7 && (std::string(key) == "context_length" || std::string(key) == "attention.sliding_window" ||
                          std::string(key) == "attention.shared_kv_layers")) ||
          (value == 0 && std::string(key) == "attention.shared_kv_layers") ||
          (value == 0 && std::string(key) == "embedding_length_per_layer_input")) {
        continue;  // sane, or sane for another model
      }
      GgufEdit edit;
      edit.ints[name] = {value};
      const absl::Status status = LoadEdited(kG4, edit);
      EXPECT_EQ(status.code(), kMismatch) << name << " = " << value << ": " << status;
    }
  }
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1.0f}) {
    for (const char* key :
         {"attention.layer_norm_rms_epsilon", "final_logit_softcapping", "rope.freq_base", "rope.freq_base_swa"}) {
      GgufEdit edit;
      edit.floats[absl::StrCat("gemma4.", key)] = {value};
      ExpectRefused(kG4, edit, kMismatch, {key});
    }
  }
  GgufEdit edit;
  edit.strings["gemma4.block_count"] = "many";
  ExpectRefused(kG4, edit, kMismatch, {"block_count"});
  edit = GgufEdit();
  edit.ints["gemma4.feed_forward_length"] = {128, 128};
  ExpectRefused(kG4, edit, kMismatch, {"feed_forward_length", "2 values"});
  edit = GgufEdit();
  edit.ints["gemma3n.altup.num_inputs"] = {17};
  ExpectRefused(kG3n, edit, kMismatch, {"altup.num_inputs"});
  edit = GgufEdit();
  edit.ints["gemma3n.altup.active_idx"] = {4};
  ExpectRefused(kG3n, edit, kMismatch, {"altup.active_idx"});
  edit = GgufEdit();
  edit.floats["gemma3n.activation_sparsity_scale"] = {1, 2};
  ExpectRefused(kG3n, edit, kMismatch, {"activation_sparsity_scale"});
}

TEST(MalformedModelTest, SharingWithoutADonorIsRefused) {
  GgufEdit edit;
  edit.ints["gemma4.attention.shared_kv_layers"] = {14};  // layer 0 slides; nothing full is below
  ExpectRefused(kG4, edit, kMismatch, {"shared_kv_layers", "full-attention"});
}

TEST(MalformedModelTest, RotationFactorsOfZeroAreRefused) {
  GgufEdit edit;
  edit.types["rope_freqs.weight"] = TensorType::kF32;  // zero-filled
  ExpectRefused(kG4, edit, kMismatch, {"rope_freqs.weight"});
}

TEST(MalformedModelTest, ForeignTensorsAndSharedKeysAreSteppedOver) {
  GgufEdit edit;
  edit.add = {{"v.patch_embd.weight", {4, 4}}, {"a.conv1d.weight", {2, 2, 2}}, {"blk.14.attn_k.weight", {64, 64}}};
  const TempDir folder;
  EditGguf(GoldenGguf(kG4), folder.File("edited.gguf"), edit);
  LoadedModel plain = LoadModel(GoldenGguf(kG4));
  LoadedModel edited = LoadModel(folder.File("edited.gguf"));
  ASSERT_NE(edited.model, nullptr);
  EXPECT_EQ(edited->info().tensors_skipped, plain->info().tensors_skipped + 3);
  const std::vector<int32_t> ids = {2, 5, 9};
  EXPECT_EQ(AllLogits(*edited.model, ids), AllLogits(*plain.model, ids));
}

TEST(MalformedModelTest, OptionsOutOfRangeAreRefused) {
  const GgufEdit unchanged;
  const auto refused = [&](const std::function<void(DecoderOptions&)>& change, const std::string& word) {
    DecoderOptions options = TestOptions();
    change(options);
    const absl::Status status = LoadEdited(kG4, unchanged, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << word << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  };
  refused([](DecoderOptions& o) { o.slots_max = 0; }, "slots_max");
  refused([](DecoderOptions& o) { o.context_max = -1; }, "context_max");
  refused([](DecoderOptions& o) { o.step_tokens_max = 0; }, "step_tokens_max");
  refused([](DecoderOptions& o) { o.logit_rows_max = -1; }, "logit_rows_max");
  refused([](DecoderOptions& o) { o.kv_tokens_max = -1; }, "kv_tokens_max");
}

TEST(MalformedModelTest, BudgetThatCannotHoldTheModelIsRefusedWithTheSmallestThatDoes) {
  auto file = storage::GgufFile::Open(GoldenGguf(kG4));
  ASSERT_TRUE(file.ok());
  ThreadPool pool(1);
  DecoderOptions options = TestOptions();
  options.dram_reserved_bytes = 1 << 20;
  options.dram_budget_bytes = 1 << 20;
  const absl::Status status = DecoderModel::Load(**file, options, pool, {}).status();
  ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  const std::string message(status.message());
  const size_t at = message.find(" bytes)");
  ASSERT_NE(at, std::string::npos) << message;
  const uint64_t smallest = std::stoull(message.substr(message.rfind('(', at) + 1));
  options.dram_budget_bytes = smallest - 1;
  EXPECT_EQ(DecoderModel::Load(**file, options, pool, {}).status().code(), absl::StatusCode::kResourceExhausted);
  options.dram_budget_bytes = smallest;
  EXPECT_TRUE(DecoderModel::Load(**file, options, pool, {}).ok());
}

}  // namespace
}  // namespace embergate::engine
