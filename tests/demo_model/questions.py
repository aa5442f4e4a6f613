"""Writes held-out questions, one JSON object a line, for tests/integration/demo_model_test.

  python3 questions.py COUNT [NAME] >questions.jsonl

Each has "category", "messages" and "tools" as the gRPC API takes them, and the one right "answer": {"text": ..} or
{"call": name, "arguments": {..}}. NAME is part of the seed; "test" (the default) is not used while training.
"""

import json
import sys

import world


def question(name, number):
    conversation = world.make("%s %d" % (name, number), True)
    *before, last = conversation["messages"]
    messages = []
    for message in before:
        out = {"role": message["role"]}
        if message["role"] == "tool":
            out.update(tool_call_id=message["tool_call_id"], result=message["content"])
        else:
            out["content"] = message["content"]
        if message.get("tool_calls"):
            out["calls"] = [{"id": call["id"], "name": call["function"]["name"],
                             "arguments": call["function"]["arguments"]} for call in message["tool_calls"]]
        messages.append(out)
    if last.get("tool_calls"):
        call = last["tool_calls"][0]["function"]
        answer = {"call": call["name"], "arguments": call["arguments"]}
    else:
        answer = {"text": last["content"]}
    return {"category": conversation["category"], "messages": messages,
            "tools": [tool["function"] for tool in conversation.get("tools", [])], "answer": answer}


if __name__ == "__main__":
    for i in range(int(sys.argv[1])):
        print(json.dumps(question(sys.argv[2] if len(sys.argv) > 2 else "test", i), ensure_ascii=False,
                         separators=(",", ":")))
