"""Gemma 4's chat format (thinking off), as segments: what a training example's text is, and which part the model says.

The server renders the same with engine/text/chat_gemma4.cc; check_parity.py compares the two.
"""

QUOTE = '<|"|>'


def argument(value):
    if isinstance(value, str):
        return QUOTE + value + QUOTE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ",".join(argument(item) for item in value) + "]"
    if value is None:
        return "null"
    return str(value)


def entries(arguments):
    return "{" + ",".join("%s:%s" % (key, argument(arguments[key])) for key in sorted(arguments, key=str.lower)) + "}"


def declaration(tool):
    function = tool["function"]
    properties = []
    for name, schema in sorted(function["parameters"]["properties"].items()):
        parts = []
        if "description" in schema:
            parts.append("description:" + argument(schema["description"]))
        if "enum" in schema:
            parts.append("enum:" + argument(schema["enum"]))
        parts.append("type:" + argument(schema["type"].upper()))
        properties.append("%s:{%s}" % (name, ",".join(parts)))
    return "declaration:%s{description:%s,parameters:{properties:{%s},required:%s,type:%s}}" % (
        function["name"], argument(function["description"]), ",".join(properties),
        argument(function["parameters"]["required"]), argument("OBJECT"))


def segments(conversation):
    """[(text, answer index or None)]: texts with an index are what the model has to say, one index per answer."""
    out = []
    messages = conversation["messages"]
    tools = conversation.get("tools") or []
    out.append(("<bos>", None))
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    if system is not None or tools:
        out.append(("<|turn>system\n" + (system or "") + "".join("<|tool>%s<tool|>" % declaration(t) for t in tools) +
                    "<turn|>\n", None))
    index = 0
    in_turn = False  # the model's turn is open, behind a tool's result
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            out.append(("<|turn>user\n%s<turn|>\n" % message["content"], None))
        elif role == "tool":
            call = messages[i - 1]["tool_calls"][0]["function"]
            out.append(("response:%s%s<tool_response|>" % (call["name"], entries(message["content"])), None))
        elif role == "assistant":
            if not in_turn:
                out.append(("<|turn>model\n", None))
            if message.get("tool_calls"):
                call = message["tool_calls"][0]["function"]
                out.append(("<|tool_call>call:%s%s<tool_call|><|tool_response>" % (
                    call["name"], entries(call["arguments"])), index))
                in_turn = True
            else:
                out.append((message["content"] + "<turn|>", index))
                out.append(("\n", None))
                in_turn = False
            index += 1
    return out


def tokens(conversation, tokenizer):
    """Token ids, and per id the index of the answer that it belongs to, -1 for what the model need not say."""
    ids, answers = [], []
    for text, index in segments(conversation):
        piece = tokenizer.encode(text)
        ids += piece
        answers += [-1 if index is None else index] * len(piece)
    return ids, answers
