#include "server/tls.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/bounded_file.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

constexpr size_t kPemBytesMax = 1 << 20;

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Freer<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using Context = std::unique_ptr<SSL_CTX, Freer<SSL_CTX_free>>;

Bio BioOf(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

// The last error of OpenSSL; the queue is empty afterwards.
std::string OpenSslError() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* const reason = ERR_reason_error_string(code);
  return reason == nullptr ? "unknown error" : reason;
}

absl::Status Unusable(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

absl::StatusOr<std::vector<Certificate>> ParseCertificates(const std::string& path, const std::string& pem) {
  std::vector<Certificate> certificates;
  const Bio bio = BioOf(pem);
  while (X509* const next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(next);
  }
  // The end of the file looks like a missing begin line; anything else is damage.
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  const std::string error = OpenSslError();
  if (!at_end || certificates.empty()) {
    return Unusable(path, absl::StrCat("no PEM certificate (", error, ")"));
  }
  return certificates;
}

absl::StatusOr<Key> ParseKey(const std::string& path, const std::string& pem) {
  const Bio bio = BioOf(pem);
  // No password, rather than a question at a terminal that nobody watches.
  const auto no_password = [](char*, int, int, void*) { return 0; };
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr));
  const std::string error = OpenSslError();
  if (key == nullptr) {
    return Unusable(path, absl::StrCat("no PEM private key without a password (", error, ")"));
  }
  return key;
}

// As a handshake would use them: this machine's policy (key sizes, digests) has its say, too.
absl::Status TryOut(const TlsFiles& files, const std::vector<Certificate>& chain, const Key& key) {
  const Context context(SSL_CTX_new(TLS_server_method()));
  if (context == nullptr) {
    return absl::InternalError(absl::StrCat("TLS is not to be had: ", OpenSslError()));
  }
  if (SSL_CTX_use_certificate(context.get(), chain.front().get()) != 1) {
    return Unusable(files.certificate, OpenSslError());
  }
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1 || SSL_CTX_check_private_key(context.get()) != 1) {
    return Unusable(files.key,
                    absl::StrCat("not the key of the certificate in ", files.certificate, " (", OpenSslError(), ")"));
  }
  for (size_t i = 1; i < chain.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context.get(), chain[i].get()) != 1) {
      return Unusable(files.certificate, OpenSslError());
    }
  }
  return absl::OkStatus();
}

// Gives a port its certificates: those of the store, whenever they have changed.
class PortCredentials final : public grpc::ServerCredentials {
 public:
  explicit PortCredentials(const TlsStore& store) : store_(store) {
    uint64_t generation = 0;
    const bool client_ca = !store.Get(&generation).client_ca.empty();
    credentials_ =
        grpc_ssl_server_credentials_create_with_options(grpc_ssl_server_credentials_create_options_using_config_fetcher(
            client_ca ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                      : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            &PortCredentials::Fetch, this));
  }
  ~PortCredentials() override { grpc_server_credentials_release(credentials_); }

  // API keys are checked where plain connections are served as well.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>& /*processor*/) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // Called before each handshake, by one thread at a time.
  static grpc_ssl_certificate_config_reload_status Fetch(void* self_pointer,
                                                         grpc_ssl_server_certificate_config** config) {
    auto* const self = static_cast<PortCredentials*>(self_pointer);
    if (self->store_.generation() == self->given_) {
      return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    }
    const TlsMaterial material = self->store_.Get(&self->given_);
    const grpc_ssl_pem_key_cert_pair pair = {material.key.c_str(), material.certificate.c_str()};
    // gRPC insists on a CA here, also where no client is asked for its certificate; our own is never used for that.
    const std::string& client_ca = material.client_ca.empty() ? material.certificate : material.client_ca;
    *config = grpc_ssl_server_certificate_config_create(client_ca.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const TlsStore& store_;
  grpc_server_credentials* credentials_ = nullptr;
  uint64_t given_ = 0;  // generation that the port has
};

}  // namespace

absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsFiles& files) {
  TlsMaterial material;
  EMBERGATE_ASSIGN_OR_RETURN(material.certificate, ReadBoundedFile(files.certificate, kPemBytesMax));
  EMBERGATE_ASSIGN_OR_RETURN(material.key, ReadBoundedFile(files.key, kPemBytesMax));
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<Certificate> chain,
                             ParseCertificates(files.certificate, material.certificate));
  EMBERGATE_ASSIGN_OR_RETURN(const Key key, ParseKey(files.key, material.key));
  std::tm end = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(chain.front().get()), &end) != 1) {
    return Unusable(files.certificate, "its end of validity is no date");
  }
  material.expires = absl::FromTM(end, absl::UTCTimeZone());
  if (material.expires <= absl::Now()) {
    return Unusable(files.certificate, absl::StrCat("expired at ", absl::FormatTime(material.expires)));
  }
  EMBERGATE_RETURN_IF_ERROR(TryOut(files, chain, key));
  if (!files.client_ca.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(material.client_ca, ReadBoundedFile(files.client_ca, kPemBytesMax));
    EMBERGATE_RETURN_IF_ERROR(ParseCertificates(files.client_ca, material.client_ca).status());
  }
  return material;
}

void TlsStore::Set(TlsMaterial material) {
  absl::MutexLock lock(&mutex_);
  if (!(material == material_)) {
    material_ = std::move(material);
    ++generation_;
  }
}

TlsMaterial TlsStore::Get(uint64_t* generation) const {
  absl::MutexLock lock(&mutex_);
  *generation = generation_;
  return material_;
}

uint64_t TlsStore::generation() const {
  absl::MutexLock lock(&mutex_);
  return generation_;
}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsStore& store) {
  return std::make_shared<PortCredentials>(store);
}

}  // namespace embergate::server
