// grpc.health.v1: Check and Watch from loading to draining.
#include "server/health.h"

#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/scripted_server.h"

namespace embergate::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthTest : public ::testing::Test {
 protected:
  HealthTest() : server_(Loading()), stub_(grpc::health::v1::Health::NewStub(server_.channel())) {}
  static ScriptedServerOptions Loading() {
    ScriptedServerOptions options = SmallServer();
    options.ready = false;
    return options;
  }
  HealthCheckResponse::ServingStatus Check(const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status = stub_->Check(BoundedContext().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> Watch(grpc::ClientContext* context,
                                                                 const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    return stub_->Watch(context, request);
  }

  ScriptedServer server_;
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
};

TEST_F(HealthTest, CheckFollowsTheLifeCycle) {
  for (const char* service : {"", "embergate.v1.Inference"}) {
    EXPECT_EQ(Check(service), HealthCheckResponse::NOT_SERVING) << "while loading";
  }
  server_.server().lifecycle().SetReady(&server_.served());
  for (const char* service : {"", "embergate.v1.Inference"}) {
    EXPECT_EQ(Check(service), HealthCheckResponse::SERVING);
  }
  server_.server().lifecycle().SetDraining();
  for (const char* service : {"", "embergate.v1.Inference"}) {
    EXPECT_EQ(Check(service), HealthCheckResponse::NOT_SERVING) << "while draining";
  }
}

TEST_F(HealthTest, CheckOfAnUnknownServiceIsNotFound) {
  HealthCheckRequest request;
  request.set_service("nobody");
  HealthCheckResponse response;
  EXPECT_EQ(stub_->Check(BoundedContext().get(), request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthTest, WatchSeesEachChange) {
  const auto context = BoundedContext();
  const auto watch = Watch(context.get(), "");
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  server_.server().lifecycle().SetReady(&server_.served());
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_.server().lifecycle().SetDraining();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  context->TryCancel();
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(HealthTest, WatchOfAnUnknownServiceStaysOpen) {
  const auto context = BoundedContext(300);
  const auto watch = Watch(context.get(), "nobody");
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  server_.server().lifecycle().SetReady(&server_.served());
  EXPECT_FALSE(watch->Read(&response)) << "a change that is none of its service";
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(HealthTest, ShutdownEndsWatches) {
  const auto context = BoundedContext();
  const auto watch = Watch(context.get(), "");
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  server_.server().Shutdown(absl::Now() + absl::Seconds(10));
  while (watch->Read(&response)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(HealthTest, ManyWatchersComeAndGoDuringChanges) {
  std::atomic<bool> stop{false};
  std::thread changes([&] {
    HealthService& health = server_.server().health();
    for (bool serving = true; !stop; serving = !serving) {
      health.SetServing(serving);
    }
  });
  std::vector<std::thread> watchers;
  for (int t = 0; t < 3; ++t) {
    watchers.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        const auto context = BoundedContext();
        const auto watch = Watch(context.get(), "");
        HealthCheckResponse response;
        for (int reads = 0; reads < i % 4; ++reads) {
          EXPECT_TRUE(watch->Read(&response));
        }
        context->TryCancel();
        watch->Finish();
      }
    });
  }
  for (std::thread& watcher : watchers) watcher.join();
  stop = true;
  changes.join();
}

// For proxies that do not ask.
TEST(ListenWhenReadyTest, ThePortTakesConnectionsWhileHealthSaysServing) {
  ScriptedServerOptions options = SmallServer();
  options.ready = false;
  options.grpc.addresses = {"127.0.0.1:0"};
  options.grpc.listen_when_ready = true;
  ScriptedServer server(options);
  const std::string address = server.server().addresses()[0];
  EXPECT_EQ(ListeningAddress::Bind(address).status().code(), absl::StatusCode::kUnavailable) << "it has the port";
  Lifecycle& lifecycle = server.server().lifecycle();
  const auto connect = [&] {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    return grpc::health::v1::Health::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  };
  // What a health check comes to: UNKNOWN where nobody can be asked.
  const auto check = [](grpc::health::v1::Health::Stub& stub) {
    HealthCheckResponse response;
    const grpc::Status status = stub.Check(BoundedContext().get(), HealthCheckRequest(), &response);
    EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE) << status.error_message();
    return response.status();
  };
  EXPECT_EQ(check(*connect()), HealthCheckResponse::UNKNOWN) << "loading";
  lifecycle.SetReady(&server.served());
  const auto kept = connect();
  EXPECT_EQ(check(*kept), HealthCheckResponse::SERVING);
  lifecycle.SetFlashHealthy(false);
  EXPECT_EQ(check(*connect()), HealthCheckResponse::UNKNOWN) << "flash fails";
  EXPECT_EQ(check(*kept), HealthCheckResponse::NOT_SERVING) << "connections stay";
  lifecycle.SetFlashHealthy(true);
  EXPECT_EQ(check(*connect()), HealthCheckResponse::SERVING);
  EXPECT_TRUE(lifecycle.SetLoading());
  EXPECT_EQ(check(*connect()), HealthCheckResponse::UNKNOWN) << "another model is loaded";
  lifecycle.SetReady(&server.served());
  EXPECT_EQ(check(*connect()), HealthCheckResponse::SERVING);
  lifecycle.SetDraining();
  EXPECT_EQ(check(*connect()), HealthCheckResponse::UNKNOWN);
}

}  // namespace
}  // namespace embergate::server
