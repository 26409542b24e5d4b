// Command gateway serves the contract's REST in front of its gRPC, as the
// documentation of grpc-gateway sets one up: gateway SERVER ADDRESS.
package main

import (
	"context"
	"log"
	"net/http"
	"os"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	auth "gateway/blatam/auth/v1"
	post "gateway/blatam/post/v1"
	user "gateway/blatam/user/v1"
)

type register func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error

func main() {
	server, address := os.Args[1], os.Args[2]
	plaintext := grpc.WithTransportCredentials(insecure.NewCredentials())
	connection, err := grpc.NewClient(server, plaintext)
	if err != nil {
		log.Fatal(err)
	}
	mux := runtime.NewServeMux()
	services := []register{
		auth.RegisterAuthServiceHandler,
		post.RegisterPostServiceHandler,
		user.RegisterUserServiceHandler,
	}
	for _, service := range services {
		if err := service(context.Background(), mux, connection); err != nil {
			log.Fatal(err)
		}
	}
	log.Fatal(http.ListenAndServe(address, mux))
}
