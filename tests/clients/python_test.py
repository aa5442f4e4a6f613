"""Each RPC as a client in Python sees it, with stubs made from the .proto files, against the real server."""
import json
import os
import shlex
import subprocess
import sys
import threading
import unittest

import stubs

stubs.need_grpc()
import grpc  # noqa: E402
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory  # noqa: E402

harness = stubs.harness
FOLDER = harness.Folder(prefix="embergate-stubs-")
stubs.make_python(FOLDER.name)
sys.path.insert(0, FOLDER.name)
from embergate.v1 import (generate_pb2, inference_pb2, inference_pb2_grpc, input_pb2, score_pb2,  # noqa: E402
                          tokenize_pb2)
import error_details_pb2  # noqa: E402
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
import reflection_pb2  # noqa: E402
import reflection_pb2_grpc  # noqa: E402
import status_pb2  # noqa: E402

TIMEOUT = 60


def ids_request(ids, max_tokens, **more):
    return generate_pb2.GenerateRequest(token_ids=input_pb2.TokenIds(ids=ids), sampling=generate_pb2.Sampling(seed=7),
                                        stopping=generate_pb2.Stopping(max_tokens=max_tokens, ignore_eos=True), **more)


def details(error):
    """The google.rpc details of a failed call, by type."""
    [packed] = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    found = {}
    for detail in status_pb2.Status.FromString(packed).details:
        name = detail.type_url.split(".")[-1]
        found[name] = getattr(error_details_pb2, name).FromString(detail.value)
    return found


class PythonClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server("--log-level", "debug", "--prefill-chunk", "16", "--context", "512").wait_ready()
        cls.addClassCleanup(cls.server.__exit__)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = inference_pb2_grpc.InferenceStub(cls.channel)

    def test_the_example_streams_an_answer(self):
        prompt = "Why is the sea salty?"
        result = harness.run(sys.executable, os.path.join(stubs.HERE, "python", "generate.py"), self.server.address, prompt,
                             env={**os.environ, "PYTHONPATH": FOLDER.name})
        self.assertTrue(result.stdout.startswith(stubs.answer_of(self.server, prompt)), result.stdout)
        self.assertIn("prefill_seconds", result.stdout)
        stubs.check_readme(self, "python", "python", "generate.py")

    def test_generate_streams(self):
        request = ids_request([2, 17, 4], 20)
        messages = list(self.stub.Generate(request, timeout=TIMEOUT))
        kinds = [message.WhichOneof("event") for message in messages]
        self.assertEqual((kinds[0], kinds[-1]), ("started", "finished"))
        self.assertEqual(set(kinds[1:-1]), {"delta"})
        self.assertEqual(messages[0].started.input_tokens, 3)
        self.assertEqual(messages[0].started.seed, 7)
        ids = [i for message in messages for i in message.delta.ids]
        self.assertEqual(len(ids), 20)
        text = "".join(message.delta.text for message in messages)
        self.assertEqual(text, self.stub.Detokenize(tokenize_pb2.DetokenizeRequest(ids=ids), timeout=TIMEOUT).text)
        finished = messages[-1].finished
        self.assertEqual(finished.reason, generate_pb2.FINISH_REASON_LENGTH)
        self.assertEqual(finished.usage.output_tokens, 20)
        self.assertGreater(finished.receipt.kv_bytes_peak, 0)

        once = self.stub.GenerateOnce(request, timeout=TIMEOUT)
        [answer] = once.answers
        self.assertEqual((list(answer.ids), answer.text, answer.reason), (ids, text, finished.reason))
        self.assertEqual(once.usage.output_tokens, 20)

    def test_generate_once_gives_several_answers(self):
        request = ids_request([2, 17, 4], 10, n=3)
        request.sampling.temperature = 1
        request.logprobs.output_top = 2
        once = self.stub.GenerateOnce(request, timeout=TIMEOUT)
        self.assertEqual([answer.completion for answer in once.answers], [0, 1, 2])
        for answer in once.answers:
            self.assertEqual(len(answer.ids), 10)
            self.assertEqual([position.chosen.id for position in answer.logprobs], list(answer.ids))
            self.assertAlmostEqual(answer.cumulative_logprob, sum(p.chosen.logprob for p in answer.logprobs), 3)
        self.assertEqual(once.usage.output_tokens, 30)

    def test_a_time_limit_ends_well(self):
        request = ids_request([2, 17, 4], 100)
        request.time_limit.FromNanoseconds(1)
        [answer] = self.stub.GenerateOnce(request, timeout=TIMEOUT).answers
        self.assertEqual(answer.reason, generate_pb2.FINISH_REASON_TIME_LIMIT)
        self.assertEqual(list(answer.ids), [])

    def test_the_progress_of_a_prompt_on_request(self):
        request = ids_request([9] * 100, 1, prompt_progress=True)
        request.logprobs.prompt = True  # computed even if an earlier test had the same prompt
        # What a step has overtaken before it could be sent is left out, and this model's steps are fast.
        for _ in range(50):
            stream = self.stub.Generate(request, timeout=TIMEOUT)
            progress = [m.prompt_progress for m in stream if m.HasField("prompt_progress")]
            if progress:
                break
        self.assertTrue(progress)
        self.assertEqual([p.tokens_done for p in progress], sorted({p.tokens_done for p in progress}))
        self.assertEqual({p.tokens_total for p in progress}, {100})
        self.assertLess(progress[-1].tokens_done, 100)

    def test_score(self):
        response = self.stub.Score(score_pb2.ScoreRequest(token_ids=input_pb2.TokenIds(ids=[2, 40, 7]), top=3),
                                   timeout=TIMEOUT)
        self.assertEqual(list(response.ids), [2, 40, 7])
        self.assertEqual([position.chosen.id for position in response.positions], [40, 7])
        for position in response.positions:
            self.assertEqual(len(position.top), 3)
            self.assertLessEqual(position.chosen.logprob, position.top[0].logprob)
        self.assertEqual(len(response.next), 3)

    def test_tokenize_and_back(self):
        text = "Grüße, 世界!"
        tokens = self.stub.Tokenize(tokenize_pb2.TokenizeRequest(text=input_pb2.TextInput(text=text), with_pieces=True),
                                    timeout=TIMEOUT)
        self.assertEqual(len(tokens.pieces), len(tokens.ids))
        self.assertEqual(self.stub.Detokenize(tokenize_pb2.DetokenizeRequest(ids=tokens.ids), timeout=TIMEOUT).text, text)
        chat = self.stub.Tokenize(tokenize_pb2.TokenizeRequest(chat=input_pb2.ChatInput(
            messages=[input_pb2.ChatMessage(role="ROLE_USER", content=text)])), timeout=TIMEOUT)
        self.assertGreater(len(chat.ids), len(tokens.ids))

    def test_model_info(self):
        info = self.stub.GetModelInfo(inference_pb2.GetModelInfoRequest(), timeout=TIMEOUT)
        self.assertEqual(info.architecture, "gemma4")
        self.assertEqual(info.limits.context_tokens, 512)
        self.assertTrue(info.default_sampling.HasField("temperature"))
        self.assertEqual(info.memory.total_bytes, sum(part.bytes for part in info.memory.parts))

    def test_errors_say_which_field(self):
        request = ids_request([2], 5)
        request.sampling.top_p = 2
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(request, timeout=TIMEOUT))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        found = details(caught.exception)
        self.assertEqual([v.field for v in found["BadRequest"].field_violations], ["sampling.top_p"])
        self.assertEqual(found["ErrorInfo"].domain, "embergate")

    def test_cancelling_and_deadlines_end_a_call(self):
        stream = self.stub.Generate(ids_request([2, 17, 4], 150), timeout=TIMEOUT)
        next(stream)
        stream.cancel()
        with self.assertRaises(grpc.RpcError):
            list(stream)
        self.assertEqual(stream.code(), grpc.StatusCode.CANCELLED)
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.GenerateOnce(ids_request([2, 17, 4], 150), timeout=0.001)
        if caught.exception.code() != grpc.StatusCode.DEADLINE_EXCEEDED:  # the server may see at once that it is too short
            self.assertEqual(details(caught.exception)["ErrorInfo"].reason, "DEADLINE_UNREACHABLE")

    def log_line(self, request_id):
        return harness.wait_for("the call's line in the log",
                                lambda: [line for line in self.server.log().splitlines() if request_id in line])[0]

    def test_a_call_is_named_in_the_log(self):
        trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        request = ids_request([2], 1, request_id='a "quoted" id code=OK')
        self.stub.GenerateOnce(request, timeout=TIMEOUT, metadata=[("traceparent", "00-%s-%s-01" % (trace, span))])
        line = self.log_line("quoted")
        self.assertIn(r'id="a \"quoted\" id code=OK"', line)
        self.assertRegex(line, 'trace_id="?%s"? span_id="?%s"?' % (trace, span))
        once = self.stub.GenerateOnce(ids_request([2], 1), timeout=TIMEOUT,
                                      metadata=[("x-request-id", "from-metadata"), ("traceparent", "00-%s-01" % trace)])
        self.assertEqual(once.started.request_id, "from-metadata")
        self.assertNotIn("trace_id", self.log_line("from-metadata"))
        self.stub.Tokenize(tokenize_pb2.TokenizeRequest(text=input_pb2.TextInput(text="a secret prompt")), timeout=TIMEOUT,
                           metadata=[("x-request-id", "of-tokenize")])
        self.assertRegex(self.log_line("of-tokenize"), 'method="?Tokenize')
        with self.assertRaises(grpc.RpcError):
            self.stub.GenerateOnce(ids_request([2], 1, request_id="forged\ncall method=Generate id=none"), timeout=TIMEOUT)
        self.assertNotIn("forged", self.server.log())
        self.assertNotIn("secret", self.server.log())

    def test_health(self):
        health = health_pb2_grpc.HealthStub(self.channel)
        for service in "", "embergate.v1.Inference":
            status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status
            self.assertEqual(status, health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="another"), timeout=TIMEOUT)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_health_is_watched_through_a_drain(self):
        with harness.Server() as server, grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
            stop = threading.Thread(target=server.stop)
            stop.start()
            try:
                self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
                with self.assertRaises((grpc.RpcError, StopIteration)):
                    next(watch)
            finally:
                stop.join()

    def test_readmes_grpcurl_needs_no_files(self):
        """What the command sends, by what the server says of itself; and the command, where grpcurl is installed."""
        reflection = reflection_pb2_grpc.ServerReflectionStub(self.channel)

        def ask(**request):
            return next(reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**request)]),
                                                        timeout=TIMEOUT))
        services = {service.name for service in ask(list_services="*").list_services_response.service}
        self.assertLessEqual({"embergate.v1.Inference", "grpc.health.v1.Health"}, services)
        files = {}
        for packed in ask(file_containing_symbol="embergate.v1.Inference").file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(packed)
            files[file.name] = file
        pool = descriptor_pool.DescriptorPool()

        def add(name):
            file = files.pop(name, None)
            if file is not None:
                for needed in file.dependency:
                    add(needed)
                pool.Add(file)
        for name in list(files):
            add(name)
        # A call with nothing but what the server said of itself.
        [line] = [line for block in stubs.readme_blocks("sh") for line in block.splitlines() if line.startswith("grpcurl ")]
        program, *options, address, name = shlex.split(line)
        self.assertEqual((options[:2], address), (["-plaintext", "-d"], "127.0.0.1:50051"))
        service, method = name.split("/")
        method = pool.FindServiceByName(service).FindMethodByName(method)
        factory = message_factory.MessageFactory(pool)
        request = json_format.Parse(options[2], factory.GetPrototype(method.input_type)())
        call = self.channel.unary_unary("/" + name, request_serializer=type(request).SerializeToString,
                                        response_deserializer=factory.GetPrototype(method.output_type).FromString)
        answer = call(request, timeout=TIMEOUT)
        self.assertTrue(answer.answers[0].text)
        self.assertGreater(answer.usage.output_tokens, 0)
        if harness.find(program):
            result = harness.run(harness.find(program), *options, self.server.address, name)
            self.assertTrue(json.loads(result.stdout)["answers"][0]["text"])


if __name__ == "__main__":
    harness.main()
