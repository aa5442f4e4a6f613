// embergate logits: the logits of given token sequences, to compare engines and settings.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/convert/safetensors.h"
#include "server/cli/cli.h"
#include "server/cli/local_model.h"

namespace embergate::server {
namespace {

constexpr char kCommand[] = "logits";
constexpr char kSuffix[] = ".input_ids";
constexpr int kStepTokens = 256;                        // of a step when no chunk length is given
constexpr uint64_t kBatchBytesMax = uint64_t{4} << 30;  // logits held at once with --batch
constexpr size_t kSlotsMax = 64;

struct Sequence {
  std::string name;  // without the suffix
  std::vector<int32_t> ids;
  size_t done = 0;
  std::vector<float> logits;  // [done, vocab], with --batch
};

struct Flags {
  LocalModelFlags model;
  std::string tokens;
  std::string out;
  int chunk = 0;
  bool batch = false;
};

[[noreturn]] void Fail(const std::string& message, int code) { FailCommand(kCommand, message, code); }

void Check(const absl::Status& status, int code) {
  if (!status.ok()) {
    Fail(std::string(status.message()), code);
  }
}

std::vector<Sequence> ReadSequences(const std::string& path) {
  const auto file = engine::SafetensorsFile::Open(path);
  Check(file.status(), 2);
  std::vector<Sequence> sequences;
  for (const engine::SafetensorsTensor& tensor : (*file)->tensors()) {
    if (!absl::EndsWith(tensor.name, kSuffix)) {
      continue;
    }
    const auto ids = (*file)->ReadInts(tensor);
    Check(ids.status(), 2);
    Sequence sequence;
    sequence.name = tensor.name.substr(0, tensor.name.size() - (sizeof(kSuffix) - 1));
    for (const int64_t id : *ids) {
      if (id < 0 || id > INT32_MAX) {
        Fail(absl::StrCat(path, ": tensor '", tensor.name, "' holds ", id, ", which is no token id"), 2);
      }
      sequence.ids.push_back(static_cast<int32_t>(id));
    }
    if (sequence.ids.empty()) {
      Fail(absl::StrCat(path, ": tensor '", tensor.name, "' is empty"), 2);
    }
    sequences.push_back(std::move(sequence));
  }
  if (sequences.empty()) {
    Fail(absl::StrCat(path, ": no tensor is named X", kSuffix), 2);
  }
  return sequences;
}

// One step over the unfinished ones of `members`; the sequence of index i uses slot i. Appends to their logits.
void StepTogether(engine::DecoderModel& model, absl::Span<Sequence> members, int chunk, std::vector<float>& logits) {
  const int vocab = model.limits().vocab_size;
  int room = model.limits().step_tokens_max;
  std::vector<engine::Chunk> chunks;
  for (size_t i = 0; i < members.size(); ++i) {
    const size_t left = members[i].ids.size() - members[i].done;
    const size_t count = std::min<size_t>(std::min<size_t>(left, room), chunk > 0 ? chunk : left);
    if (count == 0) {
      continue;
    }
    engine::Chunk part;
    part.slot = static_cast<int>(i);
    part.tokens = absl::MakeConstSpan(members[i].ids).subspan(members[i].done, count);
    part.start = static_cast<int>(members[i].done);
    part.logits = engine::LogitsWanted::kAll;
    chunks.push_back(part);
    room -= static_cast<int>(count);
  }
  Check(model.Step(absl::MakeSpan(chunks), absl::MakeSpan(logits), nullptr), 1);
  const float* row = logits.data();
  for (const engine::Chunk& part : chunks) {
    Check(part.status, 1);
    Sequence& sequence = members[part.slot];
    sequence.logits.insert(sequence.logits.end(), row, row + part.tokens.size() * vocab);
    sequence.done += part.tokens.size();
    row += part.tokens.size() * vocab;
  }
}

// Computes `members` in one batch and writes their logits in order.
void ComputeAndWrite(engine::DecoderModel& model, absl::Span<Sequence> members, int chunk, std::vector<float>& logits,
                     engine::SafetensorsWriter& writer) {
  for (size_t i = 0; i < members.size(); ++i) {
    Check(model.OpenSlot(static_cast<int>(i), static_cast<int>(members[i].ids.size())), 1);
  }
  const auto unfinished = [&] {
    return std::any_of(members.begin(), members.end(),
                       [](const Sequence& sequence) { return sequence.done < sequence.ids.size(); });
  };
  while (unfinished()) {
    StepTogether(model, members, chunk, logits);
    if (members.size() == 1) {  // nothing to keep in order: write as it comes
      Check(writer.AppendFloats(members[0].logits), 1);
      members[0].logits.clear();
    }
  }
  for (size_t i = 0; i < members.size(); ++i) {
    Check(writer.AppendFloats(members[i].logits), 1);
    members[i].logits = {};
    model.CloseSlot(static_cast<int>(i));
  }
}

void Run(const Flags& flags) {
  std::vector<Sequence> sequences = ReadSequences(flags.tokens);
  size_t longest = 0;
  uint64_t tokens = 0;
  for (const Sequence& sequence : sequences) {
    longest = std::max(longest, sequence.ids.size());
    tokens += sequence.ids.size();
  }
  const size_t slots = flags.batch ? std::min(sequences.size(), kSlotsMax) : 1;
  engine::DecoderOptions options;
  options.context_max = static_cast<int>(longest);
  options.slots_max = static_cast<int>(slots);
  const uint64_t step = flags.chunk > 0 ? uint64_t{slots} * flags.chunk : uint64_t{slots} * longest;
  options.step_tokens_max = static_cast<int>(std::clamp<uint64_t>(step, 1, std::max(flags.chunk, kStepTokens)));
  options.logit_rows_max = options.step_tokens_max;
  LocalModel local = LoadLocalModel(kCommand, flags.model, options);
  const engine::ModelLimits& limits = local.model->limits();
  if (static_cast<size_t>(limits.context_max) < longest) {
    Fail(absl::StrCat("a sequence has ", longest, " tokens; the model's context is ", limits.context_max), 2);
  }
  if (slots > 1 && tokens * limits.vocab_size * sizeof(float) > kBatchBytesMax) {
    Fail(absl::StrCat("the logits of ", tokens, " tokens do not fit in memory together; leave out --batch"), 2);
  }

  auto writer = engine::SafetensorsWriter::Create(flags.out);
  Check(writer.status(), 1);
  for (const Sequence& sequence : sequences) {
    const uint64_t shape[] = {sequence.ids.size(), static_cast<uint64_t>(limits.vocab_size)};
    Check((*writer)->Add(sequence.name + ".logits", engine::SafetensorsType::kF32, shape), 1);
  }
  std::vector<float> logits(static_cast<size_t>(limits.step_tokens_max) * limits.vocab_size);
  for (size_t first = 0; first < sequences.size(); first += slots) {
    ComputeAndWrite(*local.model, absl::MakeSpan(sequences).subspan(first, slots), flags.chunk, logits, **writer);
  }
  Check((*writer)->Finish(), 1);
  std::fprintf(stderr, "%zu sequences, %llu tokens: %s\n", sequences.size(), static_cast<unsigned long long>(tokens),
               flags.out.c_str());
}

}  // namespace

void AddLogits(CLI::App& app) {
  CLI::App* logits = app.add_subcommand("logits", "Compute the logits of token sequences, to compare engines");
  auto flags = std::make_shared<Flags>();
  flags->model.kv_type = "f32";
  AddLocalModelOptions(*logits, flags->model);
  logits->add_option("--tokens", flags->tokens, "Safetensors file: each integer tensor X.input_ids is a sequence")
      ->required()
      ->type_name("IN.safetensors");
  logits->add_option("--out", flags->out, "Gets F32 X.logits [tokens, vocabulary], after the softcap")
      ->required()
      ->type_name("OUT.safetensors");
  logits->add_option("--chunk", flags->chunk, "Tokens of a sequence per step; 0 = as many as fit")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  logits->add_flag("--batch", flags->batch, "Compute the sequences together, not one after another");
  logits->footer("Exit codes: 0 done, 1 failed while computing or writing, 2 the model or the tokens cannot be used.");
  logits->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
