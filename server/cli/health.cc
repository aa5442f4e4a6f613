// embergate health: for container and load balancer checks.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <string>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/cli/cli.h"
#include "server/cli/client.h"

namespace embergate::server {

void AddHealth(CLI::App& app) {
  CLI::App* health = app.add_subcommand("health", "Ask a server whether it serves (exit code 0) or not (1)");
  struct Flags {
    ClientFlags client;
    std::string service;
  };
  auto flags = std::make_shared<Flags>();
  flags->client.timeout_seconds = 3;
  AddClientOptions(*health, flags->client);
  health->add_option("--service", flags->service, "Full name of a service; empty: the server as a whole");
  health->callback([flags] {
    const auto stub = grpc::health::v1::Health::NewStub(Connect(flags->client));
    grpc::ClientContext context;
    SetDeadline(flags->client, context);
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(flags->service);
    grpc::health::v1::HealthCheckResponse response;
    if (const grpc::Status status = stub->Check(&context, request, &response); !status.ok()) {
      ReportError("health", status);
      throw CLI::RuntimeError(1);
    }
    std::printf("%s\n", grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status()).c_str());
    if (response.status() != grpc::health::v1::HealthCheckResponse::SERVING) {
      throw CLI::RuntimeError(1);
    }
  });
}

}  // namespace embergate::server
