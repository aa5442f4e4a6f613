// The process's log: spdlog to stderr, as text or as one JSON object per line.
#ifndef EMBERGATE_SERVER_LOGGING_H_
#define EMBERGATE_SERVER_LOGGING_H_

#include <string>

namespace embergate::server {

// `level`: debug, info, warn or error. Call once, before the first message.
void InitLogging(const std::string& level, bool json);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_LOGGING_H_
