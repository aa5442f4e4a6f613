// The `{arch}.` keys of a GGUF file, for a converted checkpoint and for a synthesised model alike.
#ifndef EMBERGATE_ENGINE_CONVERT_MODEL_KEYS_H_
#define EMBERGATE_ENGINE_CONVERT_MODEL_KEYS_H_

#include "engine/convert/hf_config.h"
#include "storage/gguf_writer.h"

namespace embergate::engine {

// "gemma4" or "gemma3n".
const char* ArchitectureName(ModelFamily family);

// Every key that the loaders of the family want, and embergate.ple_rows; none of general.* nor of the tokenizer.
void AddModelKeys(const HfConfig& config, storage::GgufWriter& writer);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_MODEL_KEYS_H_
