// Streams an answer: generate HOST:PORT PROMPT
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <iostream>

#include "embergate/v1/inference.grpc.pb.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: generate HOST:PORT PROMPT\n";
    return 2;
  }
  auto stub = embergate::v1::Inference::NewStub(grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  embergate::v1::GenerateRequest request;
  auto* message = request.mutable_chat()->add_messages();
  message->set_role(embergate::v1::ChatMessage::ROLE_USER);
  message->set_content(argv[2]);
  request.mutable_sampling()->set_seed(1);
  request.mutable_stopping()->set_max_tokens(100);

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  auto stream = stub->Generate(&context, request);
  embergate::v1::GenerateResponse response;
  while (stream->Read(&response)) {
    std::cout << response.delta().text() << std::flush;
    if (response.has_finished()) {
      std::cout << "\n" << response.finished().receipt().DebugString();
    }
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) {
    std::cerr << status.error_message() << "\n";
  }
  return status.ok() ? 0 : 1;
}
