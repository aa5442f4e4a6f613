// The process's log: spdlog to stderr, as text or as one JSON object per line.
#ifndef EMBERGATE_SERVER_LOGGING_H_
#define EMBERGATE_SERVER_LOGGING_H_

#include <spdlog/common.h>

#include <string>

#include "nlohmann/json.hpp"

namespace embergate::server {

// `level`: debug, info, warn or error. Call once, before the first message and before other threads.
void InitLogging(const std::string& level, bool json);
// Writes the events that wait, and takes no more; when the threads that log events have ended.
void FinishLogging();
// Between the two. Threads: any.
void SetLogLevel(const std::string& level);

// A message with values for programs: members of the JSON object, or in text ` name=value`, strings quoted and escaped
// either way. Never waits: when a thousand of them are behind, the oldest are lost. `fields` is an object without time,
// level and message. Threads: any.
void LogEvent(spdlog::level::level_enum level, const std::string& message, const nlohmann::ordered_json& fields);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_LOGGING_H_
