// TLS and client certificates over loopback; certificates that are exchanged, and broken ones that are not.
#include "server/tls.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reloader.h"
#include "tests/server/scripted_server.h"
#include "tests/support/certificates.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using test::CertificateAndKey;
using ::testing::HasSubstr;

class TlsTest : public ::testing::Test {
 protected:
  TlsFiles Write(const CertificateAndKey& pair, const std::string& client_ca = "") {
    TlsFiles files{folder_.Write("cert.pem", pair.certificate), folder_.Write("key.pem", pair.key), ""};
    if (!client_ca.empty()) {
      files.client_ca = folder_.Write("ca.pem", client_ca);
    }
    return files;
  }
  static ScriptedServerOptions ServerWith(const TlsFiles& files) {
    ScriptedServerOptions options = SmallServer();
    options.grpc.addresses = {"127.0.0.1:0", "127.0.0.1:0"};  // each port asks for the certificates by itself
    absl::StatusOr<TlsMaterial> material = ReadTlsMaterial(files);
    EXPECT_TRUE(material.ok()) << material.status();
    options.grpc.tls = *std::move(material);
    return options;
  }
  // A call over a new connection: gRPC shares those of channels with the same arguments.
  static grpc::Status Call(ScriptedServer& server, const std::string& root, const CertificateAndKey& own = {},
                           size_t address = 0) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = root;
    options.pem_cert_chain = own.certificate;
    options.pem_private_key = own.key;
    return CallOver(server, grpc::SslCredentials(options), address);
  }
  static grpc::Status CallOver(ScriptedServer& server, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                               size_t address = 0) {
    static int channels = 0;
    grpc::ChannelArguments arguments;
    arguments.SetInt("embergate.test.channel", ++channels);
    const auto stub =
        v1::Inference::NewStub(grpc::CreateCustomChannel(server.server().addresses()[address], credentials, arguments));
    v1::GetModelInfoResponse info;
    return stub->GetModelInfo(BoundedContext(5000).get(), v1::GetModelInfoRequest(), &info);
  }

  const test::TempFolder folder_;
  const CertificateAndKey ca_ = test::MakeCa("the CA");
  const CertificateAndKey other_ca_ = test::MakeCa("another CA");
};

TEST_F(TlsTest, ServesClientsThatTrustItAndNoPlainOnes) {
  ScriptedServer server(ServerWith(Write(test::MakeCertificate("server", ca_))));
  EXPECT_TRUE(Call(server, ca_.certificate).ok());
  EXPECT_TRUE(Call(server, ca_.certificate, {}, 1).ok()) << "the second port";
  EXPECT_EQ(Call(server, other_ca_.certificate).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(CallOver(server, grpc::InsecureChannelCredentials()).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, DemandsClientCertificatesOfItsCa) {
  ScriptedServer server(ServerWith(Write(test::MakeCertificate("server", ca_), ca_.certificate)));
  EXPECT_TRUE(Call(server, ca_.certificate, test::MakeCertificate("board 7", ca_)).ok());
  EXPECT_EQ(Call(server, ca_.certificate).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Call(server, ca_.certificate, test::MakeCertificate("board 8", other_ca_)).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, UnixSocketsStayPlain) {
  ScriptedServerOptions options = ServerWith(Write(test::MakeCertificate("server", ca_)));
  options.grpc.addresses = {"unix:" + folder_.File("socket")};
  ScriptedServer server(options);
  EXPECT_TRUE(CallOver(server, grpc::InsecureChannelCredentials()).ok());
}

TEST_F(TlsTest, NewConnectionsGetTheNewCertificate) {
  const TlsFiles files = Write(test::MakeCertificate("server", ca_));
  ScriptedServer server(ServerWith(files));
  grpc::SslCredentialsOptions trust;
  trust.pem_root_certs = ca_.certificate;
  const auto old_channel = grpc::CreateChannel(server.server().addresses()[0], grpc::SslCredentials(trust));
  const auto old_stub = v1::Inference::NewStub(old_channel);
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(old_stub->GetModelInfo(BoundedContext().get(), v1::GetModelInfoRequest(), &info).ok());

  Write(test::MakeCertificate("server", other_ca_));
  absl::StatusOr<TlsMaterial> material = ReadTlsMaterial(files);
  ASSERT_TRUE(material.ok()) << material.status();
  server.server().tls()->Set(*std::move(material));
  EXPECT_TRUE(Call(server, other_ca_.certificate).ok());
  EXPECT_TRUE(Call(server, other_ca_.certificate, {}, 1).ok()) << "the second port";
  EXPECT_FALSE(Call(server, ca_.certificate).ok());
  EXPECT_TRUE(old_stub->GetModelInfo(BoundedContext().get(), v1::GetModelInfoRequest(), &info).ok())
      << "a connection that was there";
}

TEST_F(TlsTest, BrokenFilesAreNamedWithWhatIsWrong) {
  const CertificateAndKey good = test::MakeCertificate("server", ca_);
  const CertificateAndKey expired = test::MakeCertificate("server", ca_, absl::Hours(-1));
  const std::string encrypted =
      "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkqhkiG9w0BBQ0wSjAp\n-----END ENCRYPTED PRIVATE KEY-----\n";
  std::string damaged = good.certificate;
  damaged[damaged.size() / 2] = '!';
  const struct {
    CertificateAndKey pair;
    std::string client_ca;
    const char* file;
    const char* says;
  } rows[] = {
      {{good.certificate, test::MakeCertificate("server", ca_).key}, "", "key.pem", "not the key"},
      {{good.certificate, encrypted}, "", "key.pem", "password"},
      {{good.certificate, ""}, "", "key.pem", "no PEM private key"},
      {{"", good.key}, "", "cert.pem", "no PEM certificate"},
      {{damaged, good.key}, "", "cert.pem", "no PEM certificate"},
      {{good.certificate + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", good.key},
       "",
       "cert.pem",
       "no PEM certificate"},
      {expired, "", "cert.pem", "expired"},
      {good, "nonsense", "ca.pem", "no PEM certificate"},
  };
  for (const auto& row : rows) {
    const absl::Status status = ReadTlsMaterial(Write(row.pair, row.client_ca)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.says;
    EXPECT_THAT(status.message(), HasSubstr(row.file)) << row.says;
    EXPECT_THAT(status.message(), HasSubstr(row.says));
  }
  EXPECT_EQ(ReadTlsMaterial({folder_.File("none"), folder_.File("key.pem"), ""}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(TlsTest, WhatCannotBeUsedLeavesTheServerAsItIs) {
  const TlsFiles files = Write(test::MakeCertificate("server", ca_), ca_.certificate);
  const CertificateAndKey client = test::MakeCertificate("client", ca_);
  const std::string keys = folder_.Write("keys", ApiClientLine({"alice", {DigestOf("a")}, {}}) + "\n");
  ScriptedServerOptions options = ServerWith(files);
  ServeConfig config;
  config.tls_files = files;
  config.api_keys_path = keys;
  config.grpc.clients = *ReadApiKeys(keys);
  ScriptedServer server(options);
  CLI::App app;
  const SettingsSource source(app, "");
  Reloader reloader(config, source, server.server());

  folder_.Write("key.pem", "half of a ke");
  folder_.Write("keys", "alice sha256:123\n");
  reloader.CheckFiles();
  EXPECT_EQ(server.server().stats().reload_failures.load(), 2u);
  reloader.CheckFiles();
  EXPECT_EQ(server.server().stats().reload_failures.load(), 2u) << "the same trouble is told once";
  EXPECT_TRUE(Call(server, ca_.certificate, client).ok());

  Write(test::MakeCertificate("server", other_ca_), ca_.certificate);
  reloader.CheckFiles();
  EXPECT_TRUE(Call(server, other_ca_.certificate, client).ok());
  EXPECT_EQ(server.server().stats().reloads.load(), 1u);
}

}  // namespace
}  // namespace embergate::server
