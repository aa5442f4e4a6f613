// Every metadata key and tensor name of the GGUF files that we write and read: the names that llama.cpp's loaders
// for `gemma4` and `gemma3n` expect, and our own `embergate.` keys where those cannot say something. Used by the
// converter, the synthesiser and the model loader, so that no name is typed twice.
//
// Value types are those that the converter writes; a reader should take any integer width (files differ).
#ifndef EMBERGATE_ENGINE_CONVERT_GGUF_KEYS_H_
#define EMBERGATE_ENGINE_CONVERT_GGUF_KEYS_H_

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace embergate::engine::gguf {

// ---- general.* -----------------------------------------------------------------------------------
inline constexpr char kArchitecture[] = "general.architecture";                 // "gemma4" or "gemma3n"
inline constexpr char kType[] = "general.type";                                 // "model"
inline constexpr char kName[] = "general.name";                                 // string
inline constexpr char kFileType[] = "general.file_type";                        // u32, see FileTypeOf in converter.h
inline constexpr char kQuantizationVersion[] = "general.quantization_version";  // u32 = 2

// The sampling that the model's makers recommend: llama.cpp's names for generation_config.json's settings.
inline constexpr char kSamplingTemperature[] = "general.sampling.temp";              // f32; 0 = greedy
inline constexpr char kSamplingTopK[] = "general.sampling.top_k";                    // i32; 0 = all
inline constexpr char kSamplingTopP[] = "general.sampling.top_p";                    // f32; 1 = off
inline constexpr char kSamplingMinP[] = "general.sampling.min_p";                    // f32; 0 = off
inline constexpr char kSamplingPenaltyRepeat[] = "general.sampling.penalty_repeat";  // f32; 1 = off
inline constexpr char kSamplingPenaltyWindow[] = "general.sampling.penalty_last_n";  // i32; -1 = all tokens, 0 = none

inline constexpr char kGemma4[] = "gemma4";
inline constexpr char kGemma3n[] = "gemma3n";

// ---- {arch}.*: ArchKey(arch, kX) gives the whole key ------------------------------------------------
inline constexpr char kContextLength[] = "context_length";      // u32
inline constexpr char kEmbeddingLength[] = "embedding_length";  // u32, H
inline constexpr char kBlockCount[] = "block_count";            // u32, L
inline constexpr char kVocabSize[] = "vocab_size";              // u32; the shape of token_embd decides
// u32, or i32[L] when the layers differ.
inline constexpr char kFeedForwardLength[] = "feed_forward_length";
inline constexpr char kHeadCount[] = "attention.head_count";  // u32
// u32, or i32[L] when the layers differ (full-attention layers with fewer KV heads).
inline constexpr char kHeadCountKv[] = "attention.head_count_kv";
inline constexpr char kKeyLength[] = "attention.key_length";               // u32, head size of full-attention layers
inline constexpr char kValueLength[] = "attention.value_length";           // u32, equal to key_length
inline constexpr char kKeyLengthSwa[] = "attention.key_length_swa";        // u32, gemma4: head size of sliding layers
inline constexpr char kValueLengthSwa[] = "attention.value_length_swa";    // u32, equal to key_length_swa
inline constexpr char kRmsEpsilon[] = "attention.layer_norm_rms_epsilon";  // f32
inline constexpr char kSlidingWindow[] = "attention.sliding_window";  // u32, W: positions, the current one included
// bool[L], true = sliding. Other writers: one u32 period p (every p-th layer is full).
inline constexpr char kSlidingWindowPattern[] = "attention.sliding_window_pattern";
// u32: the last n layers own no K/V and read those of the last owning layer of their own type.
inline constexpr char kSharedKvLayers[] = "attention.shared_kv_layers";
// u32, P: width of one layer's per-layer embedding; 0 = none. (llama.cpp's 3n loader fixes 256.)
inline constexpr char kPleLength[] = "embedding_length_per_layer_input";
inline constexpr char kRopeFreqBase[] = "rope.freq_base";              // f32, full-attention layers
inline constexpr char kRopeFreqBaseSwa[] = "rope.freq_base_swa";       // f32, sliding layers
inline constexpr char kRopeDimensionCount[] = "rope.dimension_count";  // u32, gemma4: the whole head; see kRopeFreqs
inline constexpr char kRopeDimensionCountSwa[] = "rope.dimension_count_swa";  // u32
// f32; 0 = no softcap. We always write it. Absent in another writer's file: 3n 30, gemma4 none.
inline constexpr char kFinalLogitSoftcapping[] = "final_logit_softcapping";
inline constexpr char kAltupActiveIndex[] = "altup.active_idx";  // u32, gemma3n
inline constexpr char kAltupInputs[] = "altup.num_inputs";       // u32, gemma3n
// f32[L], gemma3n: the cut is at mean + value * std; -inf = no cut. (llama.cpp fixes 1.6448536 in layers 0..9.)
inline constexpr char kActivationSparsityScale[] = "activation_sparsity_scale";

inline std::string ArchKey(absl::string_view arch, absl::string_view key) { return absl::StrCat(arch, ".", key); }

// ---- embergate.*: whole keys, all optional for a reader --------------------------------------------
// u32: rows of the per-layer table that the checkpoint has. The rows from here to the vocabulary's size are copies
// of row 0 (the reference gives those ids row 0; llama.cpp wants as many rows as token_embd has).
inline constexpr char kPleRows[] = "embergate.ple_rows";
// bool: the table's rows are finished per-layer inputs (finish_rows.h); the file then has no per_layer_model_proj and
// no per_layer_proj_norm.
inline constexpr char kRowsFinished[] = "embergate.per_layer_rows_finished";
inline constexpr char kEosTokenIds[] = "embergate.eos_token_ids";  // i32[]: every id that ends a generation
// CRC32C of the rows of the per-layer table: u32[row][segment], and the bytes of a row at which segments end, u32[].
inline constexpr char kRowCrc32c[] = "embergate.row_crc32c.values";
inline constexpr char kRowCrc32cSegments[] = "embergate.row_crc32c.segment_ends";

// ---- Tensors of the whole model ------------------------------------------------------------------
// dims are in GGUF order (contiguous dimension first); a PyTorch [out, in] matrix is [in, out] here.
inline constexpr char kTokenEmbd[] = "token_embd.weight";    // [H, V]; the head too unless kOutput exists
inline constexpr char kOutput[] = "output.weight";           // [H, V]; only when untied
inline constexpr char kOutputNorm[] = "output_norm.weight";  // [H] F32
inline constexpr char kPerLayerTokenEmbd[] =
    "per_layer_token_embd.weight";  // [P*L, V], layer-major; at 4096 in the file
inline constexpr char kPerLayerModelProj[] = "per_layer_model_proj.weight";  // [H, P*L], 16 or 32 bit
inline constexpr char kPerLayerProjNorm[] = "per_layer_proj_norm.weight";    // [P] F32
// gemma4: [D/2] F32 with D the full layers' head size; divides the frequencies of full layers. 1 (or the rope
// factor) for the pairs that rotate, 1e30 for those that do not.
inline constexpr char kRopeFreqs[] = "rope_freqs.weight";
inline constexpr char kAltupProj[] = "altup_proj.weight";               // gemma3n: [H, H, N-1], 16 or 32 bit
inline constexpr char kAltupUnembdProj[] = "altup_unembd_proj.weight";  // gemma3n: [H, H, N-1], 16 or 32 bit

// ---- Tensors of a layer: LayerTensor(i, kX) gives "blk.{i}.X.weight" ---------------------------------
// D head size, K KV heads, F feed-forward width of that layer; R laurel rank; N altup inputs.
inline constexpr char kAttnNorm[] = "attn_norm";      // [H] F32
inline constexpr char kAttnQ[] = "attn_q";            // [H, D*heads]
inline constexpr char kAttnK[] = "attn_k";            // [H, D*K]; gemma4 sharing layers: absent
inline constexpr char kAttnV[] = "attn_v";            // [H, D*K]; absent where V = K (k_eq_v full layers)
inline constexpr char kAttnOutput[] = "attn_output";  // [D*heads, H]
inline constexpr char kAttnQNorm[] = "attn_q_norm";   // [D] F32
inline constexpr char kAttnKNorm[] = "attn_k_norm";   // [D] F32; gemma4 sharing layers: absent
inline constexpr char kPostAttentionNorm[] = "post_attention_norm";  // [H] F32
inline constexpr char kFfnNorm[] = "ffn_norm";                       // [H] F32
inline constexpr char kFfnGate[] = "ffn_gate";                       // [H, F]
inline constexpr char kFfnUp[] = "ffn_up";                           // [H, F]
inline constexpr char kFfnDown[] = "ffn_down";                       // [F, H]
inline constexpr char kPostFfwNorm[] = "post_ffw_norm";              // [H] F32
inline constexpr char kPleGate[] = "inp_gate";                       // [H, P]
inline constexpr char kPleProj[] = "proj";                           // [P, H]
inline constexpr char kPlePostNorm[] = "post_norm";                  // [H] F32
inline constexpr char kLayerOutputScale[] = "layer_output_scale";    // [1] F32, gemma4
// gemma3n:
inline constexpr char kAltupCorrectCoef[] = "altup_correct_coef";    // [N, N]
inline constexpr char kAltupCorrectScale[] = "altup_correct_scale";  // [H] F32; ones where the config switches it off
inline constexpr char kAltupPredictCoef[] = "altup_predict_coef";    // [N, N*N]
inline constexpr char kAltupRouter[] = "altup_router";               // [H, N]
inline constexpr char kAltupRouterNorm[] = "altup_router_norm";      // [H] F32
inline constexpr char kLaurelL[] = "laurel_l";                       // [H, R]
inline constexpr char kLaurelR[] = "laurel_r";                       // [R, H]
inline constexpr char kLaurelPostNorm[] = "laurel_post_norm";        // [H] F32

inline std::string LayerTensor(int layer, absl::string_view name) {
  return absl::StrCat("blk.", layer, ".", name, ".weight");
}

}  // namespace embergate::engine::gguf

#endif  // EMBERGATE_ENGINE_CONVERT_GGUF_KEYS_H_
