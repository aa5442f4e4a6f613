"""The demo model's text: conversations with the assistant of an edge gateway, generated from a seed.

A conversation is what the API takes: {"messages": [...], "tools": [...]}, ending with the assistant's last message.
Every answer follows from what precedes it in one way only, so an answer is right or wrong, to the letter.

Each exchange has a key that names what is asked (device and state, sensor and reading, operands, ...). A fixed part of
all keys is held out: training never sees them, so accuracy on them is about what was learned, not what was stored.
"""

import hashlib
import random

HELD_OUT_ONE_IN = 12

DEVICES = ["pump", "fan", "light", "heater", "valve", "siren", "motor", "lamp", "camera", "mixer", "gate", "boiler"]
PLACES = ["kitchen", "garage", "cellar", "office", "hall", "roof", "garden", "lab", "barn", "attic", "yard", "workshop"]
# quantity: (unit, smallest, largest)
QUANTITIES = {"temperature": ("°C", 1, 99), "humidity": ("%", 1, 99), "pressure": ("bar", 1, 99), "level": ("%", 1, 99),
              "voltage": ("V", 1, 99), "current": ("A", 1, 99), "power": ("W", 100, 999), "flow": ("l/min", 1, 99)}
ROLES = ["You are the assistant of an edge gateway.", "You are a gateway assistant."]
SENTENCE_STYLE = ["Answer in short sentences.", "Be brief."]
JSON_STYLE = ["Answer commands in JSON.", "Use JSON for commands."]

TURN_ON = ["Turn on {x}.", "Turn {x} on.", "Switch on {x}.", "Switch {x} on.", "Please turn on {x}.",
           "Please switch {x} on.", "Can you turn on {x}?", "Could you turn {x} on?", "Could you switch on {x}, please?",
           "Start {x}.", "Please start {x}.", "I need {x} on.", "Power up {x}.", "I want {x} on.", "Activate {x}."]
TURN_OFF = ["Turn off {x}.", "Turn {x} off.", "Switch off {x}.", "Switch {x} off.", "Please turn off {x}.",
            "Please switch {x} off.", "Can you turn off {x}?", "Could you turn {x} off?",
            "Could you switch off {x}, please?", "Stop {x}.", "Please stop {x}.", "Shut down {x}.", "Power down {x}.",
            "I want {x} off.", "Deactivate {x}."]
SET_LEVEL = ["Set {x} to {n} %.", "Please set {x} to {n} %.", "Put {x} at {n} %.", "Can you set {x} to {n} %?",
             "Run {x} at {n} %."]
READ = ["What is the {s}?", "How high is the {s}?", "Tell me the {s}.", "Read the {s}.", "Give me the {s}.",
        "What does the {s} sensor say?", "Can you tell me the {s}?", "Please read the {s}.", "What's the {s}?",
        "Show me the {s}."]
READ_MORE = ["And the {s}?", "What about the {s}?", "And what is the {s}?"]
ABOVE = ["Is the {s} above {n} {u}?", "Is the {s} over {n} {u}?", "Is the {s} higher than {n} {u}?"]
BELOW = ["Is the {s} below {n} {u}?", "Is the {s} under {n} {u}?", "Is the {s} lower than {n} {u}?"]
ADD = ["What is {a} + {b}?", "{a} + {b}", "{a} + {b} = ?", "Add {a} and {b}.", "How much is {a} plus {b}?",
       "What is {a} plus {b}?", "Calculate {a} + {b}.", "How much is {a} + {b}?"]
SUBTRACT = ["What is {a} - {b}?", "{a} - {b}", "{a} - {b} = ?", "Subtract {b} from {a}.", "How much is {a} minus {b}?",
            "What is {a} minus {b}?", "Calculate {a} - {b}.", "How much is {a} - {b}?"]
MULTIPLY = ["What is {a} times {b}?", "{a} * {b}", "{a} * {b} = ?", "Multiply {a} by {b}.", "How much is {a} times {b}?",
            "What is {a} * {b}?", "Calculate {a} * {b}.", "How much is {a} * {b}?"]
CONVERT = ["How many {t} are {n} {f}?", "Convert {n} {f} to {t}.", "What is {n} {f} in {t}?", "{n} {f} in {t}?",
           "Please convert {n} {f} to {t}."]
THOUSANDS = [("kW", "W"), ("km", "m"), ("kg", "g"), ("V", "mV"), ("l", "ml"), ("bar", "mbar"), ("A", "mA"), ("kHz", "Hz")]
SIXTIES = [("hours", "minutes"), ("minutes", "seconds")]

FACTS = [
    (["Hello", "Hello!", "Hi", "Hi!", "Good morning", "Good morning!", "Hi there", "Hello there!", "Hey"],
     "Hello! What can I do for you?"),
    (["Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Introduce yourself."],
     "I am the assistant of this gateway."),
    (["What can you do?", "How can you help me?", "What do you do?", "Help", "What can I ask you?"],
     "I switch devices, read sensors, convert units and do simple sums."),
    (["Thanks", "Thanks!", "Thank you.", "Thank you!", "Thanks a lot."], "You are welcome."),
    (["Goodbye", "Bye", "Bye!", "Good night", "Good night!", "See you."], "Goodbye!"),
    (["What is an edge gateway?", "What does an edge gateway do?", "Explain an edge gateway.", "What is a gateway?"],
     "An edge gateway connects sensors and machines to a network."),
    (["What is Embergate?", "Tell me about Embergate.", "What does Embergate do?", "Explain Embergate."],
     "Embergate is the server that runs me."),
    (["Where are your per-layer embeddings?", "Where do your per-layer embeddings live?", "What is on flash?",
      "What do you keep on flash?"], "My per-layer embeddings stay on flash and are read row by row."),
    (["What is a sensor?", "What does a sensor do?", "Explain what a sensor is.", "What is a sensor for?"],
     "A sensor measures something and reports it as a number."),
    (["What does a pump do?", "What is a pump for?", "Explain what a pump is.", "What is a pump?"],
     "A pump moves liquid through pipes."),
    (["What does a valve do?", "What is a valve for?", "Explain what a valve is.", "What is a valve?"],
     "A valve opens or closes the way of a liquid or gas."),
    (["What does a fan do?", "What is a fan for?", "Explain what a fan is.", "What is a fan?"], "A fan moves air."),
    (["What does a heater do?", "What is a heater for?", "Explain what a heater is.", "What is a heater?"],
     "A heater makes a room or a liquid warm."),
    (["What does a siren do?", "What is a siren for?", "Explain what a siren is.", "What is a siren?"],
     "A siren warns people with a loud sound."),
    (["What does a compressor do?", "What is a compressor for?", "Explain what a compressor is.",
      "What is a compressor?"], "A compressor presses air into a tank."),
    (["What is Modbus?", "Explain Modbus.", "Tell me about Modbus.", "What is Modbus used for?"],
     "Modbus is a simple protocol for industrial devices."),
    (["What is MQTT?", "Explain MQTT.", "Tell me about MQTT.", "What is MQTT used for?"],
     "MQTT is a protocol that carries messages between devices."),
    (["What does rpm mean?", "What is rpm?", "Explain rpm.", "What does rpm stand for?"],
     "rpm means revolutions per minute."),
    (["What does dB mean?", "What is dB?", "Explain dB.", "What does dB stand for?"],
     "dB means decibel, a measure of loudness."),
    (["What does Hz mean?", "What is Hz?", "Explain Hz.", "What does Hz stand for?"],
     "Hz means hertz, cycles per second."),
    (["At what temperature does water boil?", "When does water boil?", "How hot is boiling water?"],
     "Water boils at 100 °C."),
    (["At what temperature does water freeze?", "When does water freeze?", "How cold is freezing water?"],
     "Water freezes at 0 °C."),
    (["How many hours does a day have?", "How long is a day?", "How many hours are in a day?"], "A day has 24 hours."),
    (["How many minutes does an hour have?", "How long is an hour?", "How many minutes are in an hour?"],
     "An hour has 60 minutes."),
    (["How many days does a week have?", "How long is a week?", "How many days are in a week?"], "A week has 7 days."),
    (["How many days does a year have?", "How long is a year?", "How many days are in a year?"], "A year has 365 days."),
]
MEASURED = ["What is {q} measured in?", "Which unit does {q} have?", "What unit is {q} measured in?",
            "In which unit is {q} measured?", "What is the unit of {q}?"]


def held_out(key):
    """Whether an exchange with this key (a tuple) is kept out of training."""
    digest = hashlib.sha256("|".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def tool(name, description, properties):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": list(properties)}}}


TOOLS = {
    "set_switch": tool("set_switch", "Switch a device", {"device": {"type": "string"}, "state": {"type": "string"}}),
    "set_level": tool("set_level", "Set a level", {"device": {"type": "string"}, "percent": {"type": "integer"}}),
    "read_sensor": tool("read_sensor", "Read a sensor", {"sensor": {"type": "string"}}),
}
TOOL_OF = {"switch": "set_switch", "level": "set_level", "read": "read_sensor"}


class Conversation:
    """Builds one conversation, exchange by exchange."""

    def __init__(self, rng, want_held_out):
        self.rng = rng
        self.want_held_out = want_held_out  # of the last exchange; all others are never held out
        self.messages = []
        self.tools = []
        self.json = False
        self.readings = {}      # sensor -> (value as text, unit)
        self.device = None      # the last one that was switched, and its state
        self.state = None
        self.last = None        # kind of the last exchange
        self.category = None

    # ---- what the world holds ------------------------------------------------------------------------------------

    def some_device(self):
        rng = self.rng
        device = rng.choice(DEVICES)
        kind = rng.random()
        if kind < 0.35:
            return device
        if kind < 0.75:
            return rng.choice(PLACES) + " " + device
        return device + " " + str(rng.randint(1, 9))

    def mention(self, device):
        """How people refer to "kitchen light": also as "the light in the kitchen"."""
        words = device.split(" ")
        if len(words) == 2 and words[0] in PLACES and self.rng.random() < 0.35:
            return "the %s in the %s" % (words[1], words[0])
        return "the " + device

    def some_sensor(self):
        return self.rng.choice(PLACES) + " " + self.rng.choice(list(QUANTITIES))

    def some_value(self, sensor):
        unit, low, high = QUANTITIES[sensor.split(" ")[1]]
        return str(self.rng.randint(low, high)), unit

    # ---- exchanges: each returns (key, question, answer or (tool name, arguments, response, answer)) ------------

    def switch(self):
        rng = self.rng
        state = rng.choice(["on", "off"])
        if self.device is not None and self.last == "switch" and rng.random() < 0.4:
            device, state = self.device, ("off" if self.state == "on" else "on")
            question = rng.choice(["Now turn it {s}.", "Turn it {s} again.", "And {s} again.", "Switch it {s}."]).format(s=state)
            key = ("again", device, state, self.json, bool(self.tools))
        else:
            device = self.some_device()
            question = rng.choice(TURN_ON if state == "on" else TURN_OFF).format(x=self.mention(device))
            key = ("switch", device, state, self.json, bool(self.tools))
        self.next_device = (device, state)
        sentence = "The %s is now %s." % (device, state)
        if self.tools:
            call = ("set_switch", {"device": device, "state": state}, {"ok": True}, sentence)
            return key, question, call
        return key, question, '{"device":"%s","state":"%s"}' % (device, state) if self.json else sentence

    def level(self):
        device = self.some_device()
        percent = self.rng.randint(1, 99)
        question = self.rng.choice(SET_LEVEL).format(x=self.mention(device), n=percent)
        sentence = "The %s is now at %d %%." % (device, percent)
        key = ("level", device, percent, self.json, bool(self.tools))
        if self.tools:
            return key, question, ("set_level", {"device": device, "percent": percent}, {"ok": True}, sentence)
        return key, question, '{"device":"%s","level":%d}' % (device, percent) if self.json else sentence

    def read(self):
        rng = self.rng
        sensor = self.some_sensor() if self.tools else rng.choice(list(self.readings))
        forms = READ_MORE if self.last == "read" and rng.random() < 0.5 else READ
        question = rng.choice(forms).format(s=sensor)
        value, unit = self.some_value(sensor) if self.tools else self.readings[sensor]
        sentence = "The %s is %s %s." % (sensor, value, unit)
        key = ("read", sensor, value, bool(self.tools))
        if self.tools:
            return key, question, ("read_sensor", {"sensor": sensor}, {"value": int(value), "unit": unit}, sentence)
        return key, question, sentence

    def compare(self):
        rng = self.rng
        sensor = rng.choice(list(self.readings))
        value, unit = self.readings[sensor]
        # A round bound that is not the value itself.
        step = 100 if int(value) > 99 else 10
        bound = step * rng.randint(1, 9)
        while bound == int(value):
            bound = step * rng.randint(1, 9)
        above = rng.random() < 0.5
        question = rng.choice(ABOVE if above else BELOW).format(s=sensor, n=bound, u=unit)
        # Where the reading is, not "yes" or "no": whether that agrees with the question is one step too many at this size.
        where = "above" if int(value) > bound else "below"
        return ("compare", value, bound, above), question, "It is %s %s, %s %d %s." % (value, unit, where, bound, unit)

    def sum(self):
        rng = self.rng
        a, b = rng.randint(0, 99), rng.randint(0, 9)
        if rng.random() < 0.5:
            if rng.random() < 0.3:
                a, b = b, a
            return ("add", a, b), rng.choice(ADD).format(a=a, b=b), "%d + %d = %d" % (a, b, a + b)
        a, b = max(a, b), min(a, b)
        return ("subtract", a, b), rng.choice(SUBTRACT).format(a=a, b=b), "%d - %d = %d" % (a, b, a - b)

    def product(self):
        a, b = self.rng.randint(0, 10), self.rng.randint(0, 10)
        form = self.rng.choice(MULTIPLY)
        return ("multiply", a, b, form), form.format(a=a, b=b), "%d * %d = %d" % (a, b, a * b)

    def convert(self):
        rng = self.rng
        if rng.random() < 0.8:
            source, target = rng.choice(THOUSANDS)
            n = rng.randint(1, 99)
            form = ""
            result = n * 1000
        else:
            source, target = rng.choice(SIXTIES)
            n = rng.randint(1, 10)
            form = rng.choice(CONVERT)
            result = n * 60
        question = (form or rng.choice(CONVERT)).format(n=n, f=source, t=target)
        return ("convert", n, source, form), question, "%d %s are %d %s." % (n, source, result, target)

    def before(self):
        """What the conversation held before: facts can only be recalled, so what is new about them is where they
        are asked."""
        return self.messages[-1]["content"] if self.messages else ""

    def fact(self):
        rng = self.rng
        if rng.random() < 0.2:
            quantity = rng.choice(list(QUANTITIES))
            form = rng.choice(MEASURED)
            answer = "%s is measured in %s." % (quantity.capitalize(), QUANTITIES[quantity][0])
            return ("unit", quantity, form, self.before()), form.format(q=quantity), answer
        forms, answer = rng.choice(FACTS)
        question = rng.choice(forms)
        return ("fact", question, self.before()), question, answer

    # ---- putting it together --------------------------------------------------------------------------------------

    def exchange(self, kind, last):
        want = self.want_held_out and last
        for _ in range(2000):
            key, question, answer = getattr(self, kind)()
            if held_out(key) == want:
                break
        else:
            return False
        if self.rng.random() < 0.15:
            question = question[0].lower() + question[1:]
        if self.rng.random() < 0.15 and question[-1] in ".?!":
            question = question[:-1].rstrip()
        self.category = ("tool call" if isinstance(answer, tuple) else kind)
        self.messages.append({"role": "user", "content": question})
        if isinstance(answer, tuple):
            name, arguments, response, sentence = answer
            calls = [{"id": "call_%d" % len(self.messages), "type": "function",
                      "function": {"name": name, "arguments": arguments}}]
            self.messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            if not (last and self.want_held_out and self.rng.random() < 0.5):
                self.messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": response})
                self.messages.append({"role": "assistant", "content": sentence})
                self.category = "tool result"
        else:
            self.messages.append({"role": "assistant", "content": answer})
        self.last = kind
        if kind == "switch":
            self.device, self.state = self.next_device
        return True

    def build(self):
        rng = self.rng
        # Training has more of what takes longest to learn than the questions have, and less of what is long.
        scenes = [0.62, 0.25, 0.13] if self.want_held_out else [0.7, 0.22, 0.08]
        scene = rng.choices(["plain", "readings", "tools"], scenes)[0]
        system = []
        if scene != "plain" or rng.random() < 0.5:
            system.append(rng.choice(ROLES))
        if scene == "plain" and system:
            style = rng.random()
            if style < 0.5:
                self.json = True
                system.append(rng.choice(JSON_STYLE))
            elif style < 0.8:
                system.append(rng.choice(SENTENCE_STYLE))
        if scene == "readings":
            # Each place and each quantity once, so that one word of the question is enough to find the reading.
            places = rng.sample(PLACES, rng.randint(2, 4))
            quantities = rng.sample(list(QUANTITIES), len(places))
            for place, quantity in zip(places, quantities):
                sensor = place + " " + quantity
                self.readings[sensor] = self.some_value(sensor)
            listed = ", ".join("%s %s %s" % (s, v, u) for s, (v, u) in self.readings.items())
            system.append("Readings: " + listed + ".")
        calculate = [5, 2, 6, 1.5, 2.5, 3] if self.want_held_out else [3, 2, 11, 3, 2, 3]
        kinds = {
            "plain": (["switch", "level", "sum", "product", "convert", "fact"], calculate),
            "readings": (["read", "compare"], [6, 3] if self.want_held_out else [5, 5]),
            "tools": (["switch", "read", "level"], [4, 4, 2]),
        }[scene]
        if scene == "tools":
            names = rng.sample(list(TOOLS), rng.choices([1, 2, 3], [0.4, 0.4, 0.2])[0])
            self.tools = [TOOLS[name] for name in names]
            kinds = ([kind for kind in kinds[0] if TOOL_OF[kind] in names],)
            if rng.random() < 0.3:
                system = []
        if system:
            self.messages.append({"role": "system", "content": " ".join(system)})
        # A scene costs its tokens once, so there is more than one question in most.
        counts = [1, 2, 3, 4, 5, 6] if scene == "tools" else [1, 2, 3, 3, 2, 1]
        count = rng.choices([1, 2, 3, 4, 5, 6], counts)[0]
        for i in range(count):
            if not self.exchange(rng.choices(*kinds)[0], i + 1 == count):
                return None
        conversation = {"messages": self.messages}
        if self.tools:
            conversation["tools"] = self.tools
        return conversation


def make(seed, want_held_out=False):
    """One conversation from a seed; with its category (kind of the last exchange)."""
    rng = random.Random(seed)
    while True:
        builder = Conversation(rng, want_held_out)
        conversation = builder.build()
        if conversation is not None:
            conversation["category"] = builder.category
            return conversation


if __name__ == "__main__":
    import json
    import sys
    for i in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        print(json.dumps(make("sample %d" % i, i % 2 == 1), ensure_ascii=False))
