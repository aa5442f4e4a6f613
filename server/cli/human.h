// Numbers as people read them, for the terminal.
#ifndef EMBERGATE_SERVER_CLI_HUMAN_H_
#define EMBERGATE_SERVER_CLI_HUMAN_H_

#include <cstdint>
#include <string>

namespace embergate::server {

std::string HumanBytes(uint64_t bytes);      // "0 B", "512 B", "1.50 KiB", "215 MiB", "3.54 GiB": three digits
std::string HumanCount(uint64_t count);      // "512", "1.50 K", "403 M", "4.63 B"
std::string HumanDuration(double seconds);   // "0.4 s", "12 s", "2:05", "1:02:03"
std::string GroupedDigits(uint64_t number);  // "3 804 812 128"

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_HUMAN_H_
