#include "server/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace embergate::server {
namespace {

// Ports are chosen by BuildAndStart, which writes them here.
std::string BoundAddress(const std::string& address, int port) {
  const size_t colon = address.rfind(':');
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:") || colon == std::string::npos) {
    return address;
  }
  return absl::StrCat(address.substr(0, colon), ":", port);
}

void SetLimits(const GrpcServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  // Requests are small, and a compressed one could unfold to anything.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.streams_per_connection_max);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  // A dead client is noticed within 80 s; a client may ping every 10 s, with or without calls.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  // A second server on a taken port has to fail, not to share its clients.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  grpc::ResourceQuota quota("embergate");
  quota.Resize(static_cast<size_t>(options.transport_bytes_max));
  builder.SetResourceQuota(quota);
  // The only synchronous service is reflection: one poller is enough.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
}

}  // namespace

GrpcServer::GrpcServer(const ServiceOptions& options)
    : health_({v1::Inference::service_full_name()}),
      lifecycle_([this](bool serving) { health_.SetServing(serving); }),
      service_(lifecycle_, stats_, options) {}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options) {
  std::unique_ptr<GrpcServer> server(new GrpcServer(options.service));
  if (options.reflection) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();  // applies to all builders from now on
  }
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  std::vector<int> ports(options.addresses.size(), 0);
  for (size_t i = 0; i < options.addresses.size(); ++i) {
    builder.AddListeningPort(options.addresses[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(&server->service_);
  builder.RegisterService(&server->health_);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", absl::StrJoin(options.addresses, ", "),
                                               "; is the port taken? Choose another with --listen"));
  }
  for (size_t i = 0; i < ports.size(); ++i) {
    server->addresses_.push_back(BoundAddress(options.addresses[i], ports[i]));
  }
  return server;
}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) {
    Shutdown(absl::Now());
  }
}

void GrpcServer::Shutdown(absl::Time deadline) {
  lifecycle_.SetDraining();
  health_.Shutdown();
  server_->Shutdown(absl::ToChronoTime(deadline));
  server_->Wait();
}

}  // namespace embergate::server
