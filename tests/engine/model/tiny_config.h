// Small configurations for tests of the model's parts.
#ifndef EMBERGATE_TESTS_ENGINE_MODEL_TINY_CONFIG_H_
#define EMBERGATE_TESTS_ENGINE_MODEL_TINY_CONFIG_H_

#include <vector>

#include "engine/model/config.h"

namespace embergate::engine {

// Four layers: sliding, full, then one of each that shares the first two's keys and values.
inline ModelConfig TinyConfig(int heads, int kv_heads, int dim_sliding, int dim_full, int window) {
  ModelConfig config;
  config.hidden = 8;
  config.vocab = 16;
  config.heads = heads;
  config.context_trained = 1024;
  config.window = window;
  config.own_layers = 2;
  config.rms_eps = 1e-6f;
  for (int i = 0; i < 4; ++i) {
    LayerConfig layer;
    layer.sliding = i % 2 == 0;
    layer.owns_kv = i < 2;
    layer.kv_source = i % 2;
    layer.kv_heads = kv_heads;
    layer.head_dim = layer.sliding ? dim_sliding : dim_full;
    layer.feed_forward = 16;
    config.layers.push_back(layer);
  }
  return config;
}

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_MODEL_TINY_CONFIG_H_
