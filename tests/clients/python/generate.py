"""Streams an answer: generate.py HOST:PORT PROMPT"""
import sys

import grpc
from embergate.v1 import generate_pb2, inference_pb2_grpc, input_pb2

address, prompt = sys.argv[1:]
stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(address))
request = generate_pb2.GenerateRequest(
    chat=input_pb2.ChatInput(messages=[input_pb2.ChatMessage(role="ROLE_USER", content=prompt)]),
    sampling=generate_pb2.Sampling(seed=1),
    stopping=generate_pb2.Stopping(max_tokens=100))
for message in stub.Generate(request, timeout=60):
    if message.HasField("delta"):
        print(message.delta.text, end="", flush=True)
    elif message.HasField("finished"):
        print("\n", message.finished.receipt)  # times, rows read, bytes from flash
