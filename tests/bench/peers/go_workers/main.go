// A common design in Go: a handler, a job queue, a dispatcher and a pool of workers, with net/http
// and aws-sdk-go. One object a payload.
//
// It promises nothing: the answer comes when the payload is in memory, and an upload that fails
// after the attempts of the SDK is logged and lost. The dispatcher starts a goroutine for each job
// that waits for a worker, so its memory is not bounded.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/s3"
)

const (
	MaxLength = 1 << 20
	// Newer SDKs read AWS_ENDPOINT_URL_S3 themselves; this one gets the value from the program.
	EndpointVariable = "AWS_ENDPOINT_URL_S3"
)

var (
	MaxWorkers = number("MAX_WORKERS")
	MaxQueue   = number("MAX_QUEUE")

	JobQueue = make(chan Job, MaxQueue)
	S3       = connect()
	uploads  uint64
)

type Payload struct{ json.RawMessage }

type PayloadCollection struct {
	Version  string    `json:"version"`
	Token    string    `json:"token"`
	Payloads []Payload `json:"payloads"`
}

type Job struct{ Payload Payload }

func (p *Payload) UploadToS3() error {
	path := fmt.Sprintf("%s/%d-%d", time.Now().UTC().Format("2006-01-02/15"),
		time.Now().UnixNano(), atomic.AddUint64(&uploads, 1))
	body := new(bytes.Buffer)
	if err := json.NewEncoder(body).Encode(p); err != nil {
		return err
	}
	_, err := S3.PutObject(&s3.PutObjectInput{
		Bucket:      aws.String("bench"),
		Key:         aws.String(path),
		Body:        bytes.NewReader(body.Bytes()),
		ContentType: aws.String("application/json"),
	})
	return err
}

type Worker struct {
	WorkerPool chan chan Job
	JobChannel chan Job
}

func (w Worker) Start() {
	go func() {
		for {
			w.WorkerPool <- w.JobChannel
			job := <-w.JobChannel
			if err := job.Payload.UploadToS3(); err != nil {
				log.Printf("Error uploading to S3: %s", err)
			}
		}
	}()
}

type Dispatcher struct{ WorkerPool chan chan Job }

func (d *Dispatcher) Run() {
	for i := 0; i < MaxWorkers; i++ {
		Worker{WorkerPool: d.WorkerPool, JobChannel: make(chan Job)}.Start()
	}
	go d.dispatch()
}

func (d *Dispatcher) dispatch() {
	for job := range JobQueue {
		go func(job Job) {
			jobChannel := <-d.WorkerPool
			jobChannel <- job
		}(job)
	}
}

func payloadHandler(w http.ResponseWriter, r *http.Request) {
	if r.Method != "POST" {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	var content PayloadCollection
	if err := json.NewDecoder(io.LimitReader(r.Body, MaxLength)).Decode(&content); err != nil {
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	for _, payload := range content.Payloads {
		JobQueue <- Job{Payload: payload}
	}
	w.WriteHeader(http.StatusOK)
}

// A connection kept alive for each worker: net/http's default keeps two a host.
func connect() *s3.S3 {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, MaxWorkers
	return s3.New(session.Must(session.NewSession(&aws.Config{
		Endpoint:         aws.String(os.Getenv(EndpointVariable)),
		S3ForcePathStyle: aws.Bool(true),
		HTTPClient:       &http.Client{Transport: transport},
	})))
}

func number(name string) int {
	value, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		log.Fatalf("%s: %s", name, err)
	}
	return value
}

func main() {
	listener, err := net.FileListener(os.NewFile(uintptr(number("LISTEN_FD")), "listener"))
	if err != nil {
		log.Fatal(err)
	}
	dispatcher := Dispatcher{WorkerPool: make(chan chan Job, MaxWorkers)}
	dispatcher.Run()
	http.HandleFunc("/v1/payloads", payloadHandler)
	if certificate := os.Getenv("TLS_CERT"); certificate != "" {
		log.Fatal(http.ServeTLS(listener, nil, certificate, os.Getenv("TLS_KEY")))
	}
	log.Fatal(http.Serve(listener, nil))
}
