// Streams an answer: generate HOST:PORT PROMPT
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	pb "embergate.dev/embergate/v1"
	"google.golang.org/grpc"
)

func main() {
	conn, err := grpc.Dial(os.Args[1], grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	seed, maxTokens := uint64(1), int32(100)
	stream, err := pb.NewInferenceClient(conn).Generate(ctx, &pb.GenerateRequest{
		Input: &pb.GenerateRequest_Chat{Chat: &pb.ChatInput{Messages: []*pb.ChatMessage{
			{Role: pb.ChatMessage_ROLE_USER, Content: os.Args[2]}}}},
		Sampling: &pb.Sampling{Seed: &seed},
		Stopping: &pb.Stopping{MaxTokens: &maxTokens},
	})
	for err == nil {
		var message *pb.GenerateResponse
		if message, err = stream.Recv(); err == nil {
			fmt.Print(message.GetDelta().GetText())
			if finished := message.GetFinished(); finished != nil {
				fmt.Println("\n", finished.Receipt)
			}
		}
	}
	if err != io.EOF {
		log.Fatal(err)
	}
}
