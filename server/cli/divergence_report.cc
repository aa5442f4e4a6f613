#include "server/cli/divergence_report.h"

#include <cstdio>

namespace embergate::server {
namespace {

double Top1Share(const engine::Divergence& divergence) {
  return divergence.kl.empty() ? 0.0
                               : static_cast<double>(divergence.top1_equal) / static_cast<double>(divergence.kl.size());
}

}  // namespace

void PrintEvaluation(const engine::Evaluation& evaluation, const std::string& model, const std::string& reference) {
  std::printf("positions scored    %zu\n", evaluation.nll.size());
  std::printf("perplexity          %.4f +- %.4f  %s\n", evaluation.perplexity(), evaluation.perplexity_error(),
              model.c_str());
  if (reference.empty()) {
    return;
  }
  const engine::Divergence& divergence = evaluation.divergence;
  std::printf("                    %.4f            %s (ratio %.4f)\n", evaluation.reference_perplexity(),
              reference.c_str(), evaluation.perplexity() / evaluation.reference_perplexity());
  std::printf("KL divergence       mean %.6f, median %.6f, 99 %% %.6f, max %.6f nats\n", divergence.mean_kl(),
              divergence.quantile_kl(0.5), divergence.quantile_kl(0.99), divergence.max_kl());
  std::printf("top-1 agreement     %.2f %% (%llu of %zu)\n", 100 * Top1Share(divergence),
              static_cast<unsigned long long>(divergence.top1_equal), divergence.kl.size());
}

nlohmann::json EvaluationToJson(const engine::Evaluation& evaluation) {
  nlohmann::json json = {{"positions", evaluation.nll.size()},
                         {"perplexity", evaluation.perplexity()},
                         {"perplexity_error", evaluation.perplexity_error()}};
  const engine::Divergence& divergence = evaluation.divergence;
  if (!divergence.kl.empty()) {
    json["reference_perplexity"] = evaluation.reference_perplexity();
    json["kl_mean"] = divergence.mean_kl();
    json["kl_median"] = divergence.quantile_kl(0.5);
    json["kl_99"] = divergence.quantile_kl(0.99);
    json["kl_max"] = divergence.max_kl();
    json["top1_agreement"] = Top1Share(divergence);
  }
  return json;
}

}  // namespace embergate::server
