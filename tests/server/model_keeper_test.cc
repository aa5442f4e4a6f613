// One model in place of another while calls go on: beside it, after a drain, and what fails.
#include "server/model_keeper.h"

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "server/dram_plan.h"
#include "server/status_mapping.h"
#include "tests/server/scripted_server.h"
#include "tests/server/tiny_model.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kLong = 500;  // tokens of a stream that is held in the middle

v1::GenerateRequest Greedy(int tokens) {
  v1::GenerateRequest request = IdsRequest({2, 7, 11}, tokens);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

class ModelKeeperTest : public ::testing::Test {
 protected:
  ModelKeeperTest() : first_(TinyModel(folder_, 1)), second_(TinyModel(folder_, 2)) {
    auto server = GrpcServer::Start({});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = server_->grpc_server().InProcessChannel(grpc::ChannelArguments());
    stub_ = v1::Inference::NewStub(channel_);
    keeper_ = std::make_unique<ModelKeeper>(*server_, systemd_, "", [] {});
  }
  ~ModelKeeperTest() override {
    server_->Shutdown(absl::Now());
    keeper_.reset();
  }

  ModelHostOptions Options(const std::string& path) const {
    ModelHostOptions options = TinyOptions(path);
    options.decoder.context_max = 2048;
    options.decoder.dram_budget_bytes = budget_;
    return options;
  }
  // From now on, one model fits, and two do not.
  void SetTightBudget() {
    const absl::StatusOr<uint64_t> bytes = ModelHost::Check(Options(first_));
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    budget_ = *bytes;
  }

  void Begin(const std::string& path, absl::Duration drain_timeout = absl::InfiniteDuration()) {
    keeper_->Change(Options(path), drain_timeout);
  }
  absl::Status Serve(const std::string& path) {
    Begin(path);
    return keeper_->TakeResult();
  }

  std::vector<int32_t> Ids(int tokens) {
    const StreamResult result = Generate(*stub_, Greedy(tokens));
    EXPECT_TRUE(result.status.ok()) << result.status.error_message();
    return result.ids;
  }
  bool Serving() {
    grpc::health::v1::HealthCheckResponse response;
    EXPECT_TRUE(grpc::health::v1::Health::NewStub(channel_)->Check(BoundedContext().get(), {}, &response).ok());
    return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  }
  Lifecycle& lifecycle() { return server_->lifecycle(); }

  const test::TempFolder folder_;
  const std::string first_;
  const std::string second_;
  uint64_t budget_ = 0;
  SystemdNotifier systemd_{"", absl::ZeroDuration()};
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<ModelKeeper> keeper_;
};

// A stream of `kLong` tokens that has begun, and whose engine stands still until Go.
class HeldStream {
 public:
  HeldStream(v1::Inference::Stub& stub, const Lifecycle& lifecycle)
      : context_(BoundedContext(60'000)), reader_(stub.Generate(context_.get(), Greedy(kLong))) {
    v1::GenerateResponse response;
    while (result_.deltas == 0 && reader_->Read(&response)) {
      result_.Take(response);
    }
    lifecycle.model()->engine->RunBetweenSteps([go = go_, stands = stands_] {
      stands->Notify();
      go->WaitForNotification();
    });
    stands_->WaitForNotification();
  }
  ~HeldStream() { Go(); }

  void Go() {
    if (!go_->HasBeenNotified()) {
      go_->Notify();
    }
  }
  StreamResult Finish() {
    v1::GenerateResponse response;
    while (reader_->Read(&response)) {
      result_.Take(response);
    }
    result_.status = reader_->Finish();
    return result_;
  }

 private:
  const std::unique_ptr<grpc::ClientContext> context_;
  const std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  StreamResult result_;
  const std::shared_ptr<absl::Notification> go_ = std::make_shared<absl::Notification>();
  const std::shared_ptr<absl::Notification> stands_ = std::make_shared<absl::Notification>();
};

TEST_F(ModelKeeperTest, WhereBothFitTheNewOneServesWhileTheOldOneFinishes) {
  ASSERT_TRUE(Serve(first_).ok());
  const std::vector<int32_t> first = Ids(kLong);
  const ServedModel* const old = lifecycle().model().get();
  HeldStream stream(*stub_, lifecycle());
  Begin(second_);
  ASSERT_TRUE(Eventually([&] { return lifecycle().model().get() != old; }));
  EXPECT_TRUE(Serving());
  const std::vector<int32_t> second = Ids(kLong);
  EXPECT_THAT(second, Not(first));
  EXPECT_FALSE(keeper_->ended()) << "a stream is left";
  EXPECT_EQ(lifecycle().former().get(), old);
  stream.Go();
  const StreamResult result = stream.Finish();
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.ids, first);
  EXPECT_TRUE(keeper_->TakeResult().ok());
  EXPECT_EQ(lifecycle().former(), nullptr);
  EXPECT_EQ(Ids(kLong), second);
  EXPECT_EQ(server_->stats().model_changes_beside, 1u);
}

TEST_F(ModelKeeperTest, AClientThatReadsNoMoreHoldsNoModel) {
  ASSERT_TRUE(Serve(first_).ok());
  const auto context = BoundedContext(60'000);
  const auto reader = stub_->Generate(context.get(), Greedy(kLong));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(Serve(second_).ok()) << "the engine has ended the request, whatever the client does";
  context->TryCancel();
  while (reader->Read(&response)) {
  }
  reader->Finish();
}

TEST_F(ModelKeeperTest, WhereBothDoNotFitTheOldOneIsDrainedFirst) {
  SetTightBudget();
  ASSERT_TRUE(Serve(first_).ok());
  const std::vector<int32_t> first = Ids(kLong);
  HeldStream stream(*stub_, lifecycle());
  Begin(second_);
  ASSERT_TRUE(Eventually([&] { return lifecycle().phase() == Phase::kLoading; }));
  EXPECT_FALSE(Serving());
  const StreamResult refused = Generate(*stub_, Greedy(5));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_details(), HasSubstr("LOADING"));
  EXPECT_THAT(refused.status.error_details(), HasSubstr("RetryInfo"));
  stream.Go();
  const StreamResult result = stream.Finish();
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.ids, first);
  EXPECT_TRUE(keeper_->TakeResult().ok());
  EXPECT_TRUE(Serving());
  EXPECT_THAT(Ids(kLong), Not(first));
  EXPECT_EQ(server_->stats().model_changes_drained, 1u);
  EXPECT_EQ(server_->stats().model_changes_beside, 0u);
}

TEST_F(ModelKeeperTest, StreamsThatTakeTooLongForADrainAreToldWhy) {
  SetTightBudget();
  ASSERT_TRUE(Serve(first_).ok());
  HeldStream stream(*stub_, lifecycle());
  Begin(second_, absl::ZeroDuration());
  ASSERT_TRUE(Eventually([&] { return lifecycle().phase() == Phase::kLoading; }));
  // Until the engine has been told to end it; from then on it refuses.
  const ModelUse old = lifecycle().former();
  ASSERT_NE(old, nullptr);
  class NoSink final : public engine::TokenSink {
    void OnStart(int) override {}
    void OnPrompt(std::vector<engine::PositionLogprobs>) override {}
    void OnTokens(engine::TokenEvent) override {}
    void OnFinish(engine::FinishEvent) override {}
  } sink;
  engine::GenerateRequest request;
  request.prompt = {2};
  ASSERT_TRUE(Eventually([&] { return absl::IsUnavailable(old->engine->Submit(request, &sink).status()); }));
  stream.Go();
  const StreamResult result = stream.Finish();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_details(), HasSubstr("LOADING"));
  EXPECT_THAT(result.status.error_details(), HasSubstr("RetryInfo"));
  EXPECT_EQ(keeper_->ended(), false) << "this test holds the model";
}

TEST_F(ModelKeeperTest, AFileThatIsNoModelHarmsNothing) {
  for (const bool tight : {false, true}) {
    if (tight) {
      SetTightBudget();
    }
    ASSERT_TRUE(Serve(first_).ok());
    const std::vector<int32_t> before = Ids(20);
    const ServedModel* const model = lifecycle().model().get();
    const uint64_t failed = server_->stats().model_changes_failed;
    const absl::Status broken = Serve(folder_.Write("broken.gguf", "GGUF, but no more"));
    EXPECT_FALSE(broken.ok());
    EXPECT_THAT(std::string(broken.message()), HasSubstr("broken.gguf"));
    EXPECT_FALSE(Serve(folder_.File("absent.gguf")).ok());
    EXPECT_EQ(server_->stats().model_changes_failed, failed + 2);
    EXPECT_EQ(lifecycle().model().get(), model) << "it was never out of service";
    EXPECT_TRUE(Serving());
    EXPECT_EQ(Ids(20), before);
  }
}

TEST_F(ModelKeeperTest, AModelThatDoesNotFitEvenAloneDrainsNobody) {
  SetTightBudget();
  ASSERT_TRUE(Serve(first_).ok());
  const ServedModel* const model = lifecycle().model().get();
  ModelHostOptions large = Options(second_);
  large.decoder.context_max = 16384;
  keeper_->Change(large, absl::InfiniteDuration());
  const absl::Status status = keeper_->TakeResult();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(lifecycle().model().get(), model);
}

TEST_F(ModelKeeperTest, WhenTheNewOneCannotBeLoadedAfterADrainTheOldOneComesBack) {
  SetTightBudget();
  ASSERT_TRUE(Serve(first_).ok());
  const std::vector<int32_t> first = Ids(kLong);
  HeldStream stream(*stub_, lifecycle());
  Begin(second_);
  ASSERT_TRUE(Eventually([&] { return lifecycle().phase() == Phase::kLoading; }));
  ASSERT_EQ(std::remove(second_.c_str()), 0);
  stream.Go();
  EXPECT_EQ(stream.Finish().ids, first);
  EXPECT_FALSE(keeper_->TakeResult().ok());
  EXPECT_TRUE(keeper_->serving());
  EXPECT_TRUE(Serving());
  EXPECT_EQ(Ids(kLong), first);
  EXPECT_EQ(server_->stats().model_changes_failed, 1u);
}

TEST_F(ModelKeeperTest, WhenNeitherCanBeLoadedThereIsNoneLeft) {
  SetTightBudget();
  ASSERT_TRUE(Serve(first_).ok());
  HeldStream stream(*stub_, lifecycle());
  Begin(second_);
  ASSERT_TRUE(Eventually([&] { return lifecycle().phase() == Phase::kLoading; }));
  ASSERT_EQ(std::remove(first_.c_str()), 0);
  ASSERT_EQ(std::remove(second_.c_str()), 0);
  stream.Go();
  EXPECT_TRUE(stream.Finish().status.ok()) << "its rows come from the file that is still open";
  const absl::Status status = keeper_->TakeResult();
  EXPECT_FALSE(keeper_->serving());
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot be loaded again"));
}

TEST_F(ModelKeeperTest, AServerThatShutsDownTakesNoOtherModel) {
  ASSERT_TRUE(Serve(first_).ok());
  const ServedModel* const model = lifecycle().model().get();
  lifecycle().SetDraining();
  EXPECT_TRUE(absl::IsUnavailable(Serve(second_)));
  EXPECT_EQ(lifecycle().model().get(), model);
  budget_ = 1;
  EXPECT_FALSE(Serve(second_).ok());
  EXPECT_TRUE(keeper_->serving());
}

}  // namespace
}  // namespace embergate::server
