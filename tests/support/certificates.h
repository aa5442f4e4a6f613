// Certificates for tests of TLS, made on the spot.
#ifndef EMBERGATE_TESTS_SUPPORT_CERTIFICATES_H_
#define EMBERGATE_TESTS_SUPPORT_CERTIFICATES_H_

#include <string>

#include "absl/time/time.h"

namespace embergate::test {

struct CertificateAndKey {
  std::string certificate;  // PEM
  std::string key;          // PEM
};

// Signed by itself.
CertificateAndKey MakeCa(const std::string& name);
// For servers on 127.0.0.1 and localhost, and for clients alike.
CertificateAndKey MakeCertificate(const std::string& name, const CertificateAndKey& ca,
                                  absl::Duration valid_for = absl::Hours(24));

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_CERTIFICATES_H_
