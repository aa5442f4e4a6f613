// How `eval` and `convert --check` show an evaluation.
#ifndef EMBERGATE_SERVER_CLI_DIVERGENCE_REPORT_H_
#define EMBERGATE_SERVER_CLI_DIVERGENCE_REPORT_H_

#include <string>

#include "engine/convert/evaluate.h"
#include "nlohmann/json.hpp"

namespace embergate::server {

// To stdout. `reference` is empty when there is none.
void PrintEvaluation(const engine::Evaluation& evaluation, const std::string& model, const std::string& reference);
nlohmann::json EvaluationToJson(const engine::Evaluation& evaluation);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_DIVERGENCE_REPORT_H_
