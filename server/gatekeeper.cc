#include "server/gatekeeper.h"

#include <openssl/crypto.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/status_mapping.h"

namespace embergate::server {
namespace {

constexpr size_t kKeyBytesMax = 256;
constexpr size_t kIdentityBytesMax = 128;

absl::string_view ToView(const grpc::string_ref& text) { return {text.data(), text.size()}; }

// The key of `authorization: Bearer KEY`, or of `x-api-key: KEY`; empty if there is neither.
absl::string_view PresentedKey(const grpc::ServerContextBase& context) {
  static constexpr absl::string_view kScheme = "bearer ";
  const auto& metadata = context.client_metadata();
  const auto [begin, end] = metadata.equal_range("authorization");
  for (auto it = begin; it != end; ++it) {
    const absl::string_view value = ToView(it->second);
    if (absl::StartsWithIgnoreCase(value, kScheme)) {
      return value.substr(kScheme.size());
    }
  }
  const auto it = metadata.find("x-api-key");
  return it == metadata.end() ? absl::string_view() : ToView(it->second);
}

// The name in the client's certificate, which the handshake has verified; empty without one.
std::string CertificateName(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) {
    return "";
  }
  std::vector<grpc::string_ref> names = auth->FindPropertyValues("x509_common_name");
  if (names.empty() || names.front().empty()) {
    names = auth->GetPeerIdentity();
  }
  return names.empty() ? "" : std::string(ToView(names.front()).substr(0, kIdentityBytesMax));
}

// Prompt and answers, as many as can come of it.
int64_t TokensAtMost(const engine::GenerateRequest& request, int context_max) {
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  int64_t answer = request.stop.tokens_max;
  if (answer <= 0) {
    const bool scored_only = answer == 0 && request.prompt_logprobs;
    answer = scored_only ? 0 : std::max<int64_t>(0, context_max - prompt);
  }
  return prompt + answer * request.completions;
}

}  // namespace

CallTicket::~CallTicket() {
  if (account_ == nullptr) {
    return;
  }
  if (tokens_reserved_ > 0) {
    account_->ReturnTokens(tokens_reserved_, tokens_used_);
  }
  if (streaming_) {
    account_->ReturnStream();
  }
}

absl::Status CallTicket::Admit(v1::Priority asked, int context_max, engine::GenerateRequest& request) {
  if (!identity_.empty()) {
    request.client_key = absl::StrCat("client ", identity_);
  }
  if (account_ == nullptr) {
    return absl::OkStatus();
  }
  const ClientLimits limits = account_->limits();
  request.client_weight = limits.weight;
  if (limits.batch_only) {
    if (asked == v1::PRIORITY_INTERACTIVE) {
      return WithReason(absl::PermissionDeniedError("this API key is for PRIORITY_BATCH only"), "PRIORITY_NOT_ALLOWED");
    }
    request.priority = engine::Priority::kBatch;
  }
  const int64_t tokens = TokensAtMost(request, context_max);
  absl::Status status = account_->TakeTokens(tokens);
  if (status.ok()) {
    tokens_reserved_ = tokens;
  }
  return status;
}

void Gatekeeper::SetClients(const std::vector<ApiClient>& clients) {
  std::map<std::string, std::shared_ptr<ClientAccount>> accounts;
  auto keys = std::make_shared<Keys>();
  absl::MutexLock lock(&mutex_);
  for (const ApiClient& client : clients) {
    const auto known = accounts_.find(client.name);
    std::shared_ptr<ClientAccount> account =
        known != accounts_.end() ? known->second : std::make_shared<ClientAccount>(client.name, clock_);
    account->SetLimits(client.limits);
    for (const KeyDigest& key : client.keys) {
      keys->push_back({key, account});
    }
    accounts.emplace(client.name, std::move(account));
  }
  accounts_ = std::move(accounts);
  keys_ = std::move(keys);
}

std::unique_ptr<CallTicket> Gatekeeper::Enter(const grpc::ServerContextBase& context, bool streaming) const {
  std::shared_ptr<const Keys> keys;
  {
    absl::MutexLock lock(&mutex_);
    keys = keys_;
  }
  const auto refuse = [](absl::Status status, absl::string_view reason) {
    return std::make_unique<CallTicket>(WithReason(std::move(status), reason), "", nullptr, false);
  };
  if (keys == nullptr) {
    return std::make_unique<CallTicket>(absl::OkStatus(), CertificateName(context), nullptr, false);
  }
  const absl::string_view key = PresentedKey(context);
  if (key.empty()) {
    keys_missing_.fetch_add(1, std::memory_order_relaxed);
    return refuse(absl::UnauthenticatedError(
                      "an API key is needed: metadata \"authorization: Bearer KEY\" or \"x-api-key: KEY\""),
                  "API_KEY_MISSING");
  }
  // All of them are compared, each in constant time: how long it takes tells nothing about the keys there are.
  std::shared_ptr<ClientAccount> account;
  const KeyDigest digest = DigestOf(key.substr(0, kKeyBytesMax));
  for (const KeyOwner& owner : *keys) {
    if (CRYPTO_memcmp(owner.key.data(), digest.data(), digest.size()) == 0) {
      account = owner.account;
    }
  }
  if (account == nullptr || key.size() > kKeyBytesMax) {
    keys_unknown_.fetch_add(1, std::memory_order_relaxed);
    return refuse(absl::UnauthenticatedError("the API key is not known here"), "API_KEY_UNKNOWN");
  }
  absl::Status status = account->TakeRequest();
  bool stream_taken = false;
  if (status.ok() && streaming) {
    status = account->TakeStream();
    stream_taken = status.ok();
  }
  std::string name = account->name();
  return std::make_unique<CallTicket>(std::move(status), std::move(name), std::move(account), stream_taken);
}

std::vector<std::pair<std::string, ClientAccount::Usage>> Gatekeeper::Usage() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::pair<std::string, ClientAccount::Usage>> usage;
  for (const auto& [name, account] : accounts_) {
    usage.emplace_back(name, account->usage());
  }
  return usage;
}

}  // namespace embergate::server
