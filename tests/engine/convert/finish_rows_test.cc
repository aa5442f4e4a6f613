// Finished rows: in F32 the model's logits are the same bits; in Q8_0 they stay within what Q8_0 does to them anyway.
#include "engine/convert/finish_rows.h"

#include <cmath>
#include <string>
#include <vector>

#include "engine/convert/gguf_keys.h"
#include "gtest/gtest.h"
#include "tests/engine/model/gguf_edit.h"
#include "tests/engine/model/model_fixture.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

// Root mean square over all positions of the golden sequences.
double RmsDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  }
  return std::sqrt(sum / static_cast<double>(a.size()));
}

class FinishRowsTest : public testing::TestWithParam<std::string> {
 protected:
  std::string Finish(const std::string& in, std::optional<TensorType> type = std::nullopt) {
    const std::string out = folder_.File("finished.gguf");
    FinishRowsOptions options;
    options.ple = type;
    options.threads = 2;
    const auto summary = FinishRows(in, out, options);
    EXPECT_TRUE(summary.ok()) << summary.status();
    if (summary.ok()) {
      EXPECT_EQ(summary->type == TensorType::kF32, summary->rms_error == 0);
      EXPECT_LT(summary->rms_error, 0.01);
    }
    return out;
  }
  static std::vector<float> Logits(const std::string& path, const std::vector<int32_t>& ids, int chunk) {
    LoadedModel model = LoadModel(path);
    return model.model == nullptr ? std::vector<float>() : AllLogits(*model.model, ids, chunk);
  }

  TempDir folder_;
};

TEST_P(FinishRowsTest, InF32NothingChanges) {
  const std::vector<int32_t> ids = Golden(GetParam()).Ids("seq3.input_ids");
  const std::string plain = GoldenGguf(GetParam());
  const std::string finished = Finish(plain);
  for (const int chunk : {0, 7}) {
    EXPECT_EQ(Logits(finished, ids, chunk), Logits(plain, ids, chunk));
  }
  auto file = storage::GgufFile::Open(finished);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->FindTensor(gguf::kPerLayerModelProj), nullptr);
  EXPECT_EQ((*file)->FindTensor(gguf::kPerLayerProjNorm), nullptr);
  EXPECT_EQ((*file)->FindTensor(gguf::kPerLayerTokenEmbd)->file_offset % 4096, 0u);
  // Every key is there, with its value.
  auto before = storage::GgufFile::Open(plain);
  ASSERT_TRUE(before.ok());
  for (const std::string& key : (*before)->keys()) {
    if (key != "embergate.padding") {
      EXPECT_TRUE((*file)->Has(key)) << key;
    }
  }
  EXPECT_EQ(FinishRows(finished, folder_.File("again.gguf"), FinishRowsOptions()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// Everything F32 but the table: what storing it in Q8_0 does to the logits, unfinished and finished.
TEST_P(FinishRowsTest, TheErrorIsThatOfTheTablesType) {
  const std::string exact = GoldenGguf(GetParam());
  const std::string table = folder_.File("table.gguf");
  ConvertOptions options;
  options.weights = TensorType::kF32;
  options.ple = TensorType::kQ8_0;
  ASSERT_TRUE(ConvertCheckpoint(GoldenFolder(GetParam()), table, options).ok());
  const std::string finished = Finish(exact, TensorType::kQ8_0);
  double unfinished_error = 0;
  double finished_error = 0;
  for (const char* name : {"seq1.input_ids", "seq2.input_ids", "seq3.input_ids"}) {
    const std::vector<int32_t> ids = Golden(GetParam()).Ids(name);
    const std::vector<float> expected = Logits(exact, ids, 0);
    unfinished_error += RmsDifference(Logits(table, ids, 0), expected);
    finished_error += RmsDifference(Logits(finished, ids, 0), expected);
  }
  RecordProperty("unfinished_rms", std::to_string(unfinished_error / 3));
  RecordProperty("finished_rms", std::to_string(finished_error / 3));
  EXPECT_GT(unfinished_error, 0);
  EXPECT_GT(finished_error, 0);
  // The sum of both parts is rounded, instead of one of them, then multiplied by sqrt(1/2) as the sum is: with a
  // projection c times as large as the table's part, sqrt(1 + c^2) times the error. These checkpoints have c of 1.0 to
  // 1.3 (ratios of 1.4 to 1.65); 2 is c = sqrt(3).
  EXPECT_LT(finished_error, 2 * unfinished_error);
}

INSTANTIATE_TEST_SUITE_P(All, FinishRowsTest, testing::ValuesIn(GoldenNames()), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(FinishRowsErrorsTest, SaysWhatIsWrong) {
  const TempDir folder;
  const std::string out = folder.File("out.gguf");
  EXPECT_EQ(FinishRows(folder.File("absent.gguf"), out, FinishRowsOptions()).status().code(),
            absl::StatusCode::kNotFound);
  FinishRowsOptions options;
  options.ple = TensorType::kI32;
  EXPECT_EQ(FinishRows(GoldenGguf("gemma4-tiny-e2b"), out, options).status().code(),
            absl::StatusCode::kInvalidArgument);
  // A file that says its rows are finished, in another type than a bool.
  GgufEdit edit;
  edit.ints[gguf::kRowsFinished] = {7, 8};
  const std::string wrong = folder.File("wrong.gguf");
  EditGguf(GoldenGguf("gemma4-tiny-e2b"), wrong, edit);
  auto file = storage::GgufFile::Open(wrong);
  ASSERT_TRUE(file.ok());
  const auto described = DecoderModel::Describe(**file);
  EXPECT_EQ(described.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(described.status().message()).find(gguf::kRowsFinished), std::string::npos);
}

}  // namespace
}  // namespace embergate::engine
