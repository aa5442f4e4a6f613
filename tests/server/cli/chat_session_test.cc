// Conversations and tools in files.
#include "server/cli/chat_session.h"

#include <sys/stat.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cli/tools_file.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

v1::ChatInput Conversation() {
  v1::ChatInput chat;
  const auto add = [&](v1::ChatMessage::Role role, const std::string& content) {
    v1::ChatMessage& message = *chat.add_messages();
    message.set_role(role);
    message.set_content(content);
    return &message;
  };
  add(v1::ChatMessage::ROLE_SYSTEM, "Be \"brief\".\n");
  add(v1::ChatMessage::ROLE_USER, "Wie warm ist es? °C");
  v1::ChatMessage& caller = *add(v1::ChatMessage::ROLE_ASSISTANT, "");
  v1::ToolCall& call = *caller.add_tool_calls();
  call.set_id("call_0");
  call.set_name("read_sensor");
  call.set_arguments_json("{\"sensor\":\"roof\"}");
  v1::ChatMessage& result = *add(v1::ChatMessage::ROLE_TOOL, "");
  result.set_tool_call_id("call_0");
  result.set_tool_result_json("{\"value\":21}");
  add(v1::ChatMessage::ROLE_ASSISTANT, "21 °C.")->set_thinking("It is in the result.");
  v1::Tool& tool = *chat.add_tools();
  tool.set_name("read_sensor");
  tool.set_description("Read a sensor");
  tool.set_parameters_json("{\"type\":\"object\"}");
  return chat;
}

TEST(ChatSessionTest, ComesBackAsItWas) {
  const test::TempFolder folder;
  const std::string path = folder.path() + "/session.json";
  const v1::ChatInput chat = Conversation();
  ASSERT_TRUE(SaveSession(chat, path).ok());
  ASSERT_TRUE(SaveSession(chat, path).ok()) << "a second time";
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const auto loaded = LoadSession(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->DebugString(), chat.DebugString());
}

TEST(ChatSessionTest, ErrorsSayWhere) {
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"nothing", "JSON"},
           {"[]", "messages"},
           {"{\"messages\":3}", "messages"},
           {"{\"messages\":[3]}", "messages[0]"},
           {"{\"messages\":[{\"role\":\"king\"}]}", "messages[0]"},
           {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":3}]}", "messages[0].tool_calls"},
           {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[3]}]}", "messages[0].tool_calls[0]"},
           {"{\"messages\":[],\"tools\":[{}]}", "tools[0]"}}) {
    const auto chat = ParseSession(text);
    EXPECT_EQ(chat.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(chat.status().message()), HasSubstr(part)) << text;
  }
  EXPECT_EQ(LoadSession("/no/such/file").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(SaveSession(Conversation(), "/no/such/folder/file").ok());
}

TEST(ToolsFileTest, TakesBothForms) {
  v1::ChatInput chat;
  ASSERT_TRUE(AddTools(R"([{"name":"a","description":"A","parameters":{"type":"object"}},
                           {"type":"function","function":{"name":"b"}}])",
                       chat)
                  .ok());
  ASSERT_TRUE(AddTools(R"({"tools":[{"name":"c"}]})", chat).ok());
  ASSERT_EQ(chat.tools_size(), 3);
  EXPECT_EQ(chat.tools(0).parameters_json(), R"({"type":"object"})");
  EXPECT_EQ(chat.tools(1).name(), "b");
  EXPECT_EQ(chat.tools(2).name(), "c");
  for (const char* text : {"", "{}", "[]", "[3]", "[{\"name\":3}]", "[{\"name\":\"a\",\"parameters\":3}]",
                           "[{\"name\":\"a\",\"description\":3}]"}) {
    EXPECT_EQ(AddTools(text, chat).code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace embergate::server
