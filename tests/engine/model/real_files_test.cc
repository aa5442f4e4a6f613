// What published files do differently from ours, one case each: the same model gives the same logits, bit for bit.
#include <cstdint>
#include <string>
#include <vector>

#include "engine/convert/shapes.h"
#include "engine/convert/synth.h"
#include "engine/model/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/engine/model/gguf_edit.h"
#include "tests/engine/model/model_fixture.h"

namespace embergate::engine {
namespace {

using storage::GgufFile;
using storage::TensorType;
using ::testing::HasSubstr;

constexpr char kG4[] = "gemma4-tiny-e2b";
constexpr char kG3n[] = "gemma3n-tiny-e2b";
const std::vector<int32_t> kIds = {2, 5, 9, 110, 207, 304, 401, 500, 33, 7};

std::vector<float> Logits(const std::string& path, const std::vector<int32_t>& ids = kIds) {
  LoadedModel model = LoadModel(path);
  return model.model == nullptr ? std::vector<float>() : AllLogits(*model.model, ids);
}

// Of the last position only, so that the others stop at the last layer that owns keys and values.
std::vector<float> LastLogits(const std::string& path) {
  LoadedModel model = LoadModel(path);
  if (model.model == nullptr) {
    return {};
  }
  std::vector<float> logits(static_cast<size_t>(model.vocab()));
  EXPECT_TRUE(model->OpenSlot(0, static_cast<int>(kIds.size())).ok());
  Chunk chunk;
  chunk.tokens = kIds;
  chunk.logits = LogitsWanted::kLast;
  EXPECT_TRUE(model->Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr).ok());
  EXPECT_TRUE(chunk.status.ok()) << chunk.status;
  model->CloseSlot(0);
  return logits;
}

class RealFilesTest : public ::testing::Test {
 protected:
  // The logits of the golden model changed by `edit` are those of the unchanged one.
  void ExpectSame(const std::string& golden, const GgufEdit& edit) {
    EditGguf(GoldenGguf(golden), folder_.File("edited.gguf"), edit);
    EXPECT_EQ(Logits(folder_.File("edited.gguf")), Logits(GoldenGguf(golden)));
  }

  TempDir folder_;
};

TEST_F(RealFilesTest, QueriesKeysAndValuesMayBeOneMatrix) {
  for (const auto& [golden, own_layers] : {std::pair(kG4, 7), std::pair(kG3n, 10)}) {
    GgufEdit edit;
    for (int i = 0; i < own_layers; ++i) {
      const std::string layer = absl::StrCat("blk.", i, ".");
      edit.fuse[layer + "attn_qkv.weight"] = {layer + "attn_q.weight", layer + "attn_k.weight",
                                              layer + "attn_v.weight"};
    }
    ExpectSame(golden, edit);
  }
  // 3n's files have keys and values in the sharing layers, too.
  GgufEdit edit;
  edit.fuse["blk.14.attn_qkv.weight"] = {"blk.14.attn_q.weight", "blk.14.attn_k.weight", "blk.14.attn_v.weight"};
  ExpectSame(kG3n, edit);
}

TEST_F(RealFilesTest, KeysAndValuesOfSharingLayersMayBeThereOrNot) {
  ConvertOptions options;
  options.weights = TensorType::kF32;
  options.keep_unused_kv = true;
  const std::string kept = folder_.File("kept.gguf");
  ASSERT_TRUE(ConvertCheckpoint(GoldenFolder(kG4), kept, options).ok());
  const auto file = GgufFile::Open(kept);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_NE((*file)->FindTensor("blk.14.attn_k.weight"), nullptr);
  EXPECT_EQ(Logits(kept), Logits(GoldenGguf(kG4)));

  GgufEdit edit;
  for (int i = 10; i < 15; ++i) {
    for (const char* name : {"attn_k.weight", "attn_v.weight", "attn_k_norm.weight"}) {
      edit.drop_tensors.insert(absl::StrCat("blk.", i, ".", name));
    }
  }
  ExpectSame(kG3n, edit);
}

TEST_F(RealFilesTest, PerLayerKeysMayBeOneNumberOrAList) {
  GgufEdit lists;
  lists.ints["gemma4.attention.head_count"] = std::vector<int32_t>(15, 4);
  lists.ints["gemma4.attention.head_count_kv"] = std::vector<int32_t>(15, 1);
  std::vector<int32_t> pattern;
  for (int i = 0; i < 15; ++i) {
    pattern.push_back(i % 5 != 4);
  }
  lists.ints["gemma4.attention.sliding_window_pattern"] = pattern;
  ExpectSame(kG4, lists);

  GgufEdit numbers;
  numbers.ints["gemma4.attention.sliding_window_pattern"] = {5};
  ExpectSame(kG4, numbers);

  lists = GgufEdit();
  lists.ints["gemma3n.feed_forward_length"] = std::vector<int32_t>(15, 256);
  lists.ints["gemma3n.attention.head_count_kv"] = std::vector<int32_t>(15, 1);
  ExpectSame(kG3n, lists);
  numbers = GgufEdit();
  numbers.ints["gemma3n.attention.sliding_window_pattern"] = {5};
  ExpectSame(kG3n, numbers);
}

TEST_F(RealFilesTest, LayersWithDifferentNumbersOfHeadsAreRefused) {
  GgufEdit edit;
  std::vector<int32_t> heads(15, 4);
  heads[3] = 2;
  edit.ints["gemma4.attention.head_count"] = heads;
  EditGguf(GoldenGguf(kG4), folder_.File("edited.gguf"), edit);
  const auto file = GgufFile::Open(folder_.File("edited.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status status = ReadModelConfig(**file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("attention.head_count"));
}

TEST_F(RealFilesTest, KeysThatOlderConvertersLeaveOutHaveTheLoadersDefaults) {
  GgufEdit edit;
  edit.drop_keys = {"gemma3n.altup.active_idx",        "gemma3n.altup.num_inputs",
                    "gemma3n.rope.freq_base_swa",      "gemma3n.embedding_length_per_layer_input",
                    "gemma3n.final_logit_softcapping", "gemma3n.vocab_size",
                    "gemma3n.attention.value_length",  "embergate.ple_rows"};
  ExpectSame(kG3n, edit);
  edit = GgufEdit();
  edit.drop_keys = {
      "gemma4.vocab_size",           "gemma4.attention.value_length",   "gemma4.attention.value_length_swa",
      "gemma4.rope.dimension_count", "gemma4.rope.dimension_count_swa", "gemma4.rope.freq_base_swa",
      "embergate.ple_rows"};
  ExpectSame(kG4, edit);
}

TEST_F(RealFilesTest, RotationFactorsDecideWhatRotates) {
  // Without them the whole head of a full layer rotates: another model, but one that runs.
  GgufEdit edit;
  edit.drop_tensors = {"rope_freqs.weight"};
  EditGguf(GoldenGguf(kG4), folder_.File("edited.gguf"), edit);
  const std::vector<float> whole = Logits(folder_.File("edited.gguf"));
  ASSERT_FALSE(whole.empty());
  EXPECT_GT(MaxDifference(whole, Logits(GoldenGguf(kG4))), 1e-3f);
  // 3n's loader knows no such tensor; one that is there is stepped over.
  edit = GgufEdit();
  edit.add = {{"rope_freqs.weight", {16}}};
  ExpectSame(kG3n, edit);
}

TEST_F(RealFilesTest, ATableWithFewerRowsThanTheVocabularyGivesTheOthersRowZero) {
  // 3n's own table has 262144 rows for 262400 embeddings; converters fill it up or do not.
  const auto padded = GgufFile::Open(GoldenGguf(kG3n));
  ASSERT_TRUE(padded.ok()) << padded.status();
  const storage::GgufTensor* const table = (*padded)->FindTensor("per_layer_token_embd.weight");
  ASSERT_EQ(table->rows(), 544u);
  const std::string path = folder_.File("short.gguf");
  auto out = storage::GgufWriter::Create(path);
  ASSERT_TRUE(out.ok()) << out.status();
  for (const std::string& key : (*padded)->keys()) {
    if (key != "general.alignment" && key != "embergate.ple_rows") {
      CopyKey(**padded, key, **out);
    }
  }
  for (const storage::GgufTensor& tensor : (*padded)->tensors()) {
    std::vector<uint64_t> dims = tensor.dims;
    if (&tensor == table) {
      dims[1] = 512;
    }
    ASSERT_TRUE((*out)->AddTensor(tensor.name, tensor.type, dims).ok());
  }
  ASSERT_TRUE((*out)->BeginData().ok());
  for (const storage::GgufTensor& tensor : (*padded)->tensors()) {
    std::vector<uint8_t> bytes(&tensor == table ? 512 * tensor.row_bytes() : tensor.bytes);
    ASSERT_TRUE((*padded)->ReadTensor(tensor, 0, absl::MakeSpan(bytes)).ok());
    ASSERT_TRUE((*out)->AppendData(bytes).ok());
  }
  ASSERT_TRUE((*out)->Finish().ok());
  const std::vector<int32_t> ids = {2, 5, 520, 9, 543, 7};
  EXPECT_EQ(Logits(path, ids), Logits(GoldenGguf(kG3n), ids));
}

// Rows come from flash as stored: of any type, whole and in part (prompt tokens without logits read the first layers'
// part only), they give what the same values in F32 give.
TEST_F(RealFilesTest, TheTableMayHaveAnyType) {
  ModelShape shape = *FindModelShape("gemma4-tiny");
  shape.ple_width = 256;  // so that a layer's part holds whole blocks
  const std::string path = folder_.File("table.gguf");
  const std::string plain = folder_.File("plain.gguf");
  for (const TensorType type :
       {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4_1,
        TensorType::kQ5_0, TensorType::kQ5_1, TensorType::kQ2_K, TensorType::kQ3_K, TensorType::kQ4_K,
        TensorType::kQ5_K, TensorType::kQ6_K, TensorType::kIQ4_NL, TensorType::kIQ4_XS}) {
    SynthOptions options;
    options.ple = type;
    ASSERT_TRUE(SynthesiseModel(shape, path, options).ok());
    GgufEdit edit;
    edit.dequantize = [](const std::string& name) { return name == "per_layer_token_embd.weight"; };
    EditGguf(path, plain, edit);
    const auto file = GgufFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_EQ((*file)->FindTensor("per_layer_token_embd.weight")->type, type);
    EXPECT_EQ(Logits(path), Logits(plain)) << storage::TraitsOf(type).name;
    EXPECT_EQ(LastLogits(path), LastLogits(plain)) << storage::TraitsOf(type).name;
  }
}

TEST_F(RealFilesTest, SplitFilesAreOneModel) {
  for (const char* golden : {kG4, kG3n}) {
    const std::string first = SplitGguf(GoldenGguf(golden, TensorType::kQ8_0), folder_.File(golden), 3);
    const std::vector<float> whole = Logits(GoldenGguf(golden, TensorType::kQ8_0));
    EXPECT_EQ(Logits(first), whole);
    std::string last = first;
    last.replace(last.find("-00001-"), 7, "-00003-");
    EXPECT_EQ(Logits(last), whole) << "any part opens the model";
  }
}

// A larger sibling has the same architecture's name: left half unread, it would answer nonsense.
TEST_F(RealFilesTest, WhatWouldChangeALayerIsRefusedNotSteppedOver) {
  const auto refusal = [&](const GgufEdit& edit) {
    EditGguf(GoldenGguf(kG4), folder_.File("edited.gguf"), edit);
    const auto file = GgufFile::Open(folder_.File("edited.gguf"));
    EXPECT_TRUE(file.ok()) << file.status();
    const absl::Status status = DecoderModel::Describe(**file).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    return std::string(status.message());
  };
  GgufEdit experts;
  experts.ints["gemma4.expert_count"] = {128};
  EXPECT_THAT(refusal(experts), HasSubstr("'gemma4.expert_count' is 128: mixture-of-experts"));
  for (const char* name : {"blk.0.ffn_gate_up_exps.weight", "blk.3.attn_q.bias", "blk.14.ffn_gate_inp.weight"}) {
    GgufEdit more;
    more.add = {{name, {64}}};
    EXPECT_THAT(refusal(more), HasSubstr(name));
  }
  // No experts, and layers beyond the count (a drafter's), are nothing to refuse.
  GgufEdit harmless;
  harmless.ints["gemma4.expert_count"] = {0};
  harmless.add = {{"blk.15.attn_q.weight", {64, 64}}};
  ExpectSame(kG4, harmless);
}

TEST_F(RealFilesTest, AProjectorsFileIsRefusedWithAHint) {
  GgufEdit edit;
  edit.strings["general.architecture"] = "clip";
  EditGguf(GoldenGguf(kG4), folder_.File("mmproj.gguf"), edit);
  const auto file = GgufFile::Open(folder_.File("mmproj.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const absl::Status status = ReadModelConfig(**file).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("vision or audio projector"));
}

}  // namespace
}  // namespace embergate::engine
