#include "server/logging.h"

#include <grpc/support/log.h>
#include <spdlog/async_logger.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <utility>

namespace embergate::server {
namespace {

// Events are written by a thread of their own: a reader of the log that stops must stop nobody who computes. When it
// falls behind, the oldest events are lost.
constexpr size_t kEventsWaitingMax = 1024;

struct Logs {
  std::shared_ptr<spdlog::logger> messages;  // spdlog's default logger
  std::shared_ptr<spdlog::details::thread_pool> writer;
  std::shared_ptr<spdlog::logger> events;  // null before InitLogging and after FinishLogging
  bool json = false;                       // an event is members of a JSON object
};
// Never destroyed: gRPC's threads may log to the very end.
Logs& All() {
  static Logs& logs = *new Logs;
  return logs;
}

std::string Dump(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// %* : the message as a JSON string, quotes included.
class JsonMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm& /*time*/, spdlog::memory_buf_t& out) override {
    const std::string text = Dump(std::string(message.payload.data(), message.payload.size()));
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<JsonMessage>(); }
};

std::unique_ptr<spdlog::pattern_formatter> Formatter(bool json, bool event) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  if (!json) {
    formatter->set_pattern("%Y-%m-%d %H:%M:%S.%e %L %v");
    return formatter;
  }
  constexpr char kPattern[] = R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":)";
  formatter->add_flag<JsonMessage>('*').set_pattern(std::string(kPattern) + (event ? "%v}" : "%*}"));
  return formatter;
}

// gRPC's own messages, of the severity that GRPC_VERBOSITY asks for (errors, if unset), take the same way.
void LogOfGrpc(gpr_log_func_args* args) {
  const auto level = args->severity == GPR_LOG_SEVERITY_ERROR  ? spdlog::level::warn
                     : args->severity == GPR_LOG_SEVERITY_INFO ? spdlog::level::info
                                                               : spdlog::level::debug;
  All().messages->log(level, "grpc: {}", args->message);
}

}  // namespace

void InitLogging(const std::string& level, bool json) {
  // Sinks on one stream share a mutex, so that their lines do not mix.
  auto logger = std::make_shared<spdlog::logger>("embergate", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(Formatter(json, /*event=*/false));
  spdlog::set_default_logger(logger);
  Logs& logs = All();
  logs.messages = std::move(logger);
  logs.json = json;
  logs.writer = std::make_shared<spdlog::details::thread_pool>(kEventsWaitingMax, 1);
  logs.events =
      std::make_shared<spdlog::async_logger>("embergate-events", std::make_shared<spdlog::sinks::stderr_sink_mt>(),
                                             logs.writer, spdlog::async_overflow_policy::overrun_oldest);
  logs.events->set_formatter(Formatter(json, /*event=*/true));
  SetLogLevel(level);
  gpr_set_log_function(LogOfGrpc);
}

void FinishLogging() {
  All().events.reset();
  All().writer.reset();  // ends when everything is written
}

void SetLogLevel(const std::string& level) {
  All().messages->set_level(spdlog::level::from_str(level));
  All().events->set_level(spdlog::level::from_str(level));
}

void LogEvent(spdlog::level::level_enum level, const std::string& message, const nlohmann::ordered_json& fields) {
  const Logs& logs = All();
  if (logs.events == nullptr || !logs.events->should_log(level)) {
    return;
  }
  const bool json = logs.json;
  std::string line = json ? Dump(message) : message;
  for (const auto& [name, value] : fields.items()) {
    line += json ? "," + Dump(name) + ":" : " " + name + "=";
    line += Dump(value);
  }
  logs.events->log(level, spdlog::string_view_t(line));
}

}  // namespace embergate::server
