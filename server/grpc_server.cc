#include "server/grpc_server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"

namespace embergate::server {
namespace {

// For the last messages of calls that were cancelled at a shutdown.
constexpr absl::Duration kCancelGrace = absl::Milliseconds(500);

bool IsUnixSocket(const std::string& address) {
  return absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:");
}

void SetLimits(const GrpcServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  // Requests are small, and a compressed one could unfold to anything.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.streams_per_connection_max);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  const auto set_time = [&](const char* argument, absl::Duration time) {
    builder.AddChannelArgument(argument, static_cast<int>(absl::ToInt64Milliseconds(time)));
  };
  // A client may ping every 10 s, with or without calls; who does more often gets GOAWAY (too_many_pings).
  set_time(GRPC_ARG_KEEPALIVE_TIME_MS, options.keepalive_time);
  set_time(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options.keepalive_timeout);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  set_time(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, options.handshake_timeout);
  if (options.connection_idle_max > absl::ZeroDuration()) {
    set_time(GRPC_ARG_MAX_CONNECTION_IDLE_MS, options.connection_idle_max);
  }
  if (options.connection_age_max > absl::ZeroDuration()) {
    set_time(GRPC_ARG_MAX_CONNECTION_AGE_MS, options.connection_age_max);
  }
  // It remembers every connection, which costs memory and tells who calls.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, options.channelz ? 1 : 0);
  grpc::ResourceQuota quota("embergate");
  quota.Resize(static_cast<size_t>(options.transport_bytes_max));
  builder.SetResourceQuota(quota);
  // The only synchronous service is reflection: one poller is enough.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
}

// gRPC's plug-ins register themselves for all servers of the process, reflection merely by being linked. This one gets
// those that it is to have.
class PluginsOption final : public grpc::ServerBuilderOption {
 public:
  PluginsOption(bool reflection, bool channelz) : reflection_(reflection), channelz_(channelz) {}
  void UpdateArguments(grpc::ChannelArguments* /*arguments*/) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const auto unwanted = [this](const std::unique_ptr<grpc::ServerBuilderPlugin>& plugin) {
      const bool is_reflection = dynamic_cast<grpc::reflection::ProtoServerReflectionPlugin*>(plugin.get()) != nullptr;
      return is_reflection ? !reflection_ : !channelz_ && plugin->name() == "channelz_service";
    };
    plugins->erase(std::remove_if(plugins->begin(), plugins->end(), unwanted), plugins->end());
  }

 private:
  const bool reflection_;
  const bool channelz_;
};

}  // namespace

GrpcServer::GrpcServer(const GrpcServerOptions& options)
    : health_({v1::Inference::service_full_name()}),
      lifecycle_([this, listen_when_ready = options.listen_when_ready](bool serving) {
        health_.SetServing(serving);
        if (listen_when_ready && acceptor_ != nullptr) {
          acceptor_->SetListening(serving);
        }
      }),
      service_(lifecycle_, gatekeeper_, stats_, options.service) {
  if (!options.clients.empty()) {
    gatekeeper_.SetClients(options.clients);
  }
  if (options.tls.has_value()) {
    tls_.emplace(*options.tls);
  }
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options) {
  std::unique_ptr<GrpcServer> server(new GrpcServer(options));
  const bool reflection = options.reflection && options.clients.empty();
  if (reflection) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  }
  if (options.channelz) {
    grpc::channelz::experimental::InitChannelzService();
  }
  grpc::ServerBuilder builder;
  SetLimits(options, builder);
  builder.SetOption(std::make_unique<PluginsOption>(reflection, options.channelz));
  std::vector<Acceptor::Port> ports;
  for (const std::string& address : options.addresses) {
    absl::StatusOr<ListeningAddress> bound = ListeningAddress::Bind(address);
    absl::Status status = bound.status();
    if (status.ok() && !options.listen_when_ready) {
      status = bound->Listen();
    }
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat(status.message(), "; choose another address with --listen"));
    }
    server->addresses_.push_back(bound->name());
    const bool plain = server->tls() == nullptr || IsUnixSocket(address);
    server->credentials_.push_back(plain ? grpc::InsecureServerCredentials() : TlsCredentials(*server->tls()));
    std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor> connections =
        builder.experimental().AddExternalConnectionAcceptor(
            grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, server->credentials_.back());
    ports.push_back({*std::move(bound), [connections](int listener, int connection) {
                       grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
                       parameters.listener_fd = listener;
                       parameters.fd = connection;
                       connections->HandleNewConnection(&parameters);
                     }});
  }
  builder.RegisterService(&server->service_);
  builder.RegisterService(&server->health_);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) {
    return absl::UnavailableError("gRPC's server does not start; the log has its reason");
  }
  if (!ports.empty()) {
    server->acceptor_ = std::make_unique<Acceptor>(std::move(ports), options.connections_max,
                                                   options.keepalive_time + options.keepalive_timeout);
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
  if (acceptor_ != nullptr) {
    acceptor_->Stop();
  }
  health_.Shutdown();
  // A cancelled call is not over while the kernel takes nothing of what it has written last.
  absl::Notification over;
  std::thread cutter([&] {
    if (!over.WaitForNotificationWithDeadline(deadline + kCancelGrace) && acceptor_ != nullptr) {
      acceptor_->CutOffAll();
    }
  });
  server_->Shutdown(absl::ToChronoTime(deadline));
  server_->Wait();
  over.Notify();
  cutter.join();
}

}  // namespace embergate::server
