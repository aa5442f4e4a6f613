#include "engine/convert/check.h"

#include <unistd.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/convert/converter.h"
#include "engine/convert/safetensors.h"
#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"
#include "storage/base/status_macros.h"
#include "storage/gguf_file.h"

namespace embergate::engine {
namespace {

constexpr int kContext = 512;

// A little of what models are asked: prose, a dialogue, code, arithmetic, a list, other scripts.
constexpr const char* kPrompts[] = {
    "The harbour lies at the mouth of the river, where the tide runs hard between two stone piers. In winter the "
    "boats stay in, their masts ticking against the wind, and the people of the town mend nets in the long sheds "
    "behind the church. When the ice goes out in April the first herring follow it, and for three weeks nobody sleeps "
    "much. My grandfather used to say that a man could tell the month by the smell of the quay alone.",
    "Question: Why does bread rise?\nAnswer: Yeast feeds on the sugars in the dough and gives off carbon dioxide. The "
    "gluten, a net of proteins that forms when flour is kneaded with water, holds the gas in small bubbles. In the "
    "oven the bubbles expand, the water turns to steam, and the crumb sets before they can collapse.\nQuestion: And "
    "why does it smell so good?\nAnswer:",
    "def moving_average(values, width):\n    if width < 1:\n        raise ValueError(\"width must be positive\")\n    "
    "total = 0.0\n    result = []\n    for i, value in enumerate(values):\n        total += value\n        if i >= "
    "width:\n            total -= values[i - width]\n        result.append(total / min(i + 1, width))\n    return "
    "result\n",
    "A train leaves at 9:40 and arrives at 12:05. The journey takes 2 hours and 25 minutes. If the distance is 290 "
    "kilometres, the average speed is 290 / (145 / 60) = 120 kilometres per hour. With a stop of 10 minutes the "
    "moving time is 135 minutes, so the train must run at 290 / 2.25 = 128.9 kilometres per hour.",
    "{\"device\": \"pump-3\", \"state\": \"on\", \"pressure_bar\": 2.4, \"temperature_c\": 41.5, \"alarms\": [], "
    "\"next_service\": \"2025-03-01\"}\n{\"device\": \"pump-4\", \"state\": \"off\", \"pressure_bar\": 0.0, "
    "\"temperature_c\": 19.8, \"alarms\": [\"low_flow\"], \"next_service\":",
    "Die Stadt wacht langsam auf. Auf dem Markt werden die ersten Kisten abgeladen, irgendwo bellt ein Hund. La "
    "boulangerie ouvre ses volets et l'odeur du pain chaud descend la rue. "
    "\xe6\x9c\x9d\xe3\x81\xae\xe9\xa7\x85\xe3\x81\xaf"
    "\xe3\x81\xbe\xe3\x81\xa0\xe9\x9d\x99\xe3\x81\x8b\xe3\x81\xa0\xe3\x80\x82 \xd0\xa3\xd1\x82\xd1\x80\xd0\xbe\xd0\xbc "
    "\xd0\xb3\xd0\xbe\xd1\x80\xd0\xbe\xd0\xb4 \xd0\xbf\xd1\x80\xd0\xbe\xd1\x81\xd1\x8b\xd0\xbf\xd0\xb0\xd0\xb5\xd1\x82"
    "\xd1\x81\xd1\x8f.",
    "To reset the sensor: 1. Switch off the power and wait ten seconds. 2. Hold the button while switching on. 3. "
    "Release it when the lamp blinks green. 4. Check that the display shows 0.0. If it shows another value, repeat "
    "from step 1. If the lamp stays red, the cable is loose or the sensor is broken.",
    "It was the third letter that month, and like the others it had no sender. She put it unopened on the shelf, next "
    "to the clock, and made tea. Only when the kettle had stopped singing did she notice that the clock had stopped "
    "too, at ten past four, the very hour at which",
};

// The type that keeps every matrix of the checkpoint without loss.
absl::StatusOr<storage::TensorType> LosslessType(const std::string& folder) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFolder> source, SafetensorsFolder::Open(folder));
  bool all_bf16 = true;
  bool all_f16 = true;
  for (const auto& [name, entry] : source->tensors()) {
    if (entry.tensor->shape.size() < 2) {
      continue;  // stored as F32 in any case
    }
    all_bf16 = all_bf16 && entry.tensor->type == SafetensorsType::kBF16;
    all_f16 = all_f16 && entry.tensor->type == SafetensorsType::kF16;
  }
  return all_bf16 ? storage::TensorType::kBF16 : all_f16 ? storage::TensorType::kF16 : storage::TensorType::kF32;
}

// Removes a file when it goes.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
  ~TemporaryFile() { ::unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

absl::StatusOr<std::vector<std::vector<int32_t>>> Prompts(const storage::GgufFile& file, int vocab, bool* real_text) {
  std::vector<std::vector<int32_t>> prompts;
  absl::StatusOr<Vocabulary> vocabulary = VocabularyFromGguf(file);
  *real_text = vocabulary.ok();
  if (vocabulary.ok()) {
    EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(*std::move(vocabulary)));
    for (const char* text : kPrompts) {
      for (std::vector<int32_t>& window : CutIntoWindows(*tokenizer, text, kContext, 0)) {
        prompts.push_back(std::move(window));
      }
    }
    return prompts;
  }
  if (!absl::IsNotFound(vocabulary.status())) {
    return vocabulary.status();
  }
  std::mt19937 random(1);
  for (int i = 0; i < 8; ++i) {
    std::vector<int32_t>& prompt = prompts.emplace_back();
    for (int j = 0; j < 96; ++j) {
      prompt.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
    }
  }
  return prompts;
}

}  // namespace

absl::StatusOr<CheckResult> CheckConversion(const std::string& folder, const std::string& gguf, int threads,
                                            const CheckProgress& progress) {
  EMBERGATE_ASSIGN_OR_RETURN(const storage::TensorType type, LosslessType(folder));
  const auto report = [&](const char* stage) {
    return [&progress, stage](uint64_t done, uint64_t total) {
      if (progress) {
        progress(stage, done, total);
      }
    };
  };
  const TemporaryFile exact(absl::StrCat(gguf, ".reference"));
  ConvertOptions options;
  options.weights = type;
  options.threads = threads;
  options.progress = report("converting");
  EMBERGATE_RETURN_IF_ERROR(ConvertCheckpoint(folder, exact.path(), options).status());

  ThreadPool pool(threads);
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<storage::GgufFile> reference_file,
                             storage::GgufFile::Open(exact.path()));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<storage::GgufFile> file, storage::GgufFile::Open(gguf));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderModel> reference,
                             LoadForEvaluation(*reference_file, kContext, pool, report("loading")));
  EMBERGATE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderModel> model,
                             LoadForEvaluation(*file, kContext, pool, report("loading")));
  CheckResult result;
  result.reference_type = std::string(storage::TraitsOf(type).name);
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> prompts,
                             Prompts(*file, model->limits().vocab_size, &result.real_text));
  result.prompts = static_cast<int>(prompts.size());
  EMBERGATE_ASSIGN_OR_RETURN(result.evaluation, Evaluate(*model, reference.get(), prompts, pool, report("comparing")));
  return result;
}

}  // namespace embergate::engine
