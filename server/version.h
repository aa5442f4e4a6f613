// The version of this build, from CMake's project().
#ifndef EMBERGATE_SERVER_VERSION_H_
#define EMBERGATE_SERVER_VERSION_H_

namespace embergate::server {

#ifndef EMBERGATE_VERSION
#error "EMBERGATE_VERSION comes from server/CMakeLists.txt"
#endif
inline constexpr char kVersion[] = EMBERGATE_VERSION;

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_VERSION_H_
