// Readiness follows the device: the decision by itself, and a whole server whose reads fail and then work again.
#include "server/flash_monitor.h"

#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "tests/server/tiny_model.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

storage::RowStoreStats Stats(uint64_t read, uint64_t failed, uint64_t in_a_row) {
  storage::RowStoreStats stats;
  stats.rows_read = read;
  stats.rows_failed = failed;
  stats.failures_in_a_row = in_a_row;
  return stats;
}

TEST(FlashHealthTest, FailuresInARowAreAFault) {
  FlashHealth health;
  EXPECT_TRUE(health.Update(Stats(0, 0, 0)));
  EXPECT_TRUE(health.Update(Stats(10, 2, 2)));
  EXPECT_FALSE(health.Update(Stats(10, 3, 3)));
  EXPECT_FALSE(health.Update(Stats(10, 3, 3))) << "nothing was read: nothing is known";
  EXPECT_FALSE(health.Update(Stats(14, 4, 0))) << "some still fail";
  EXPECT_TRUE(health.Update(Stats(18, 4, 0)));
}

TEST(FlashHealthTest, MoreFailuresThanRowsAreAFaultEvenWithSuccessesBetween) {
  FlashHealth health;
  EXPECT_TRUE(health.Update(Stats(100, 0, 0)));
  EXPECT_FALSE(health.Update(Stats(105, 10, 1)));
}

TEST(FlashHealthTest, OneBadBlockIsNone) {
  FlashHealth health;
  for (uint64_t i = 1; i < 50; ++i) {
    EXPECT_TRUE(health.Update(Stats(20 * i, i, 1)));
  }
}

TEST(DescribeReaderTest, SaysWhatIsInUseAndWhyNotMore) {
  storage::RowStoreStats stats;
  stats.backend = "io_uring";
  stats.direct_io = true;
  EXPECT_EQ(DescribeReader(stats), "io_uring with O_DIRECT");
  stats.backend_reason = "buffers not registered";
  EXPECT_EQ(DescribeReader(stats), "io_uring with O_DIRECT; it goes without: buffers not registered");
  stats.direct_io = false;
  stats.backend = "pread";
  stats.backend_reason = "refused";
  stats.direct_reason = "the file system refuses it";
  EXPECT_EQ(DescribeReader(stats),
            "pread, buffered; io_uring is not in use: refused; O_DIRECT is not in use: the file system refuses it");
}

class FlashFaultTest : public ::testing::Test {
 protected:
  // Every read fails until `faults` have.
  void Start(uint64_t faults) {
    storage::FaultOptions options;
    options.io_error = 1;
    options.faults_max = faults;
    Start(options);
  }
  void Start(const storage::FaultOptions& faults) {
    ModelHostOptions options = TinyOptions(TinyModel(folder_));
    options.decoder.rows.test_hooks.faults = faults;
    server_ = std::make_unique<TinyServer>(options);
    health_ = grpc::health::v1::Health::NewStub(server_->channel());
    monitor_ = std::make_unique<FlashMonitor>(
        server_->server().lifecycle(), server_->host().served().row_stats, [this] { server_->host().ProbeFlash(); },
        absl::Milliseconds(10));
  }
  ~FlashFaultTest() override { monitor_.reset(); }

  bool Serving() {
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = health_->Check(BoundedContext().get(), {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  }

  const test::TempFolder folder_;
  std::unique_ptr<TinyServer> server_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
  std::unique_ptr<FlashMonitor> monitor_;
};

TEST_F(FlashFaultTest, ReadinessGoesDownWithErrorsAndComesBackWithoutRequests) {
  // Three attempts for each of the prompt's rows, and for those of about fifty probes after that.
  Start(3 * 5 + 3 * 4 * 50);
  EXPECT_TRUE(Serving());
  const StreamResult failed = Generate(server_->stub(), IdsRequest({2, 100, 200, 300, 400}, 4));
  EXPECT_EQ(failed.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(failed.status.error_message(), HasSubstr("could not be read"));  // the log names row and byte
  EXPECT_TRUE(Eventually([&] { return !Serving(); }));
  EXPECT_FALSE(server_->server().lifecycle().flash_healthy());
  // Nobody asks for anything, and it still finds out.
  EXPECT_TRUE(Eventually([&] { return Serving(); }));
  const StreamResult good = Generate(server_->stub(), IdsRequest({2, 100, 200, 300, 400}, 4));
  EXPECT_TRUE(good.status.ok()) << good.status.error_message();
  EXPECT_TRUE(Serving());
}

TEST_F(FlashFaultTest, ADeviceThatStaysDeadKeepsTheServerOutOfService) {
  Start(UINT64_MAX);
  ASSERT_FALSE(Generate(server_->stub(), IdsRequest({2, 100, 200, 300}, 4)).status.ok());
  ASSERT_TRUE(Eventually([&] { return !Serving(); }));
  const uint64_t before = server_->host().served().row_stats().rows_failed;
  EXPECT_TRUE(Eventually([&] { return server_->host().served().row_stats().rows_failed >= before + 12; }))
      << "it goes on asking";
  EXPECT_FALSE(Serving());
  // Requests are still answered, and truly.
  EXPECT_EQ(Generate(server_->stub(), IdsRequest({5, 6}, 4)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  server_->server().lifecycle().SetDraining();
  EXPECT_FALSE(Serving());
}

// Nothing is read any more, so nothing fails: what is refused has to count.
TEST_F(FlashFaultTest, AReaderThatBrokeDownTakesTheServerOutOfService) {
  storage::FaultOptions faults;
  faults.flushes_max = 0;
  Start(faults);
  EXPECT_TRUE(Serving());
  for (int i = 0; i < 3; ++i) {  // one row each
    EXPECT_EQ(Generate(server_->stub(), IdsRequest({100 + i}, 4)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  }
  EXPECT_TRUE(Eventually([&] { return !Serving(); }));
  const uint64_t before = server_->host().served().row_stats().rows_failed;
  EXPECT_TRUE(Eventually([&] { return server_->host().served().row_stats().rows_failed >= before + 12; }));
  EXPECT_FALSE(Serving());
}

}  // namespace
}  // namespace embergate::server
