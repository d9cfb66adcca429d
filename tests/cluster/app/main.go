// A business app that knows nothing of callback-guard: it allows every callback, and ends gracefully on SIGTERM. Tests
// make it slow, or dead, through its second port. As "app pause" it only holds the namespaces of a pod.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const allow = `{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}`

func main() {
	// RFC 3339 with microseconds: tests compare these lines with those of other containers.
	log.SetFlags(0)
	log.SetOutput(stamped{})
	if len(os.Args) < 2 {
		log.Fatal("found no argument, expected pause, serve, job or get")
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	switch os.Args[1] {
	case "pause":
		// Orphans of a pod that shares its process namespace come here.
		signal.Ignore(syscall.SIGCHLD)
		<-stop
	case "serve":
		serve(os.Args[2:], stop)
	case "job":
		job(os.Args[2:])
	case "get":
		get(os.Args[2])
	default:
		log.Fatalf("found %q, expected pause, serve, job or get", os.Args[1])
	}
}

// serve answers callbacks until SIGTERM, then finishes what is under way.
func serve(arguments []string, stop <-chan os.Signal) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "where callbacks arrive")
	control := flags.String("control", ":8081", "where tests say how it behaves")
	response := flags.String("response", allow, "what every callback is answered with")
	delay := flags.Duration("delay", 0, "time before an answer")
	lingers := flags.Duration("lingers", 0, "time between SIGTERM and the end of listening, in which it still answers")
	flags.Parse(arguments)

	var requests, delayed atomic.Int64
	delayed.Store(int64(*delay))
	app := &app{address: *listen, handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		requests.Add(1)
		if wait := time.Duration(delayed.Load()); wait > 0 {
			select {
			case <-time.After(wait):
			case <-r.Context().Done():
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, *response)
	})}
	if err := app.open(); err != nil {
		log.Fatalf("app cannot listen: %v", err)
	}
	log.Printf("app started listen=%s", *listen)

	controls := http.NewServeMux()
	controls.HandleFunc("/control", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if text := query.Get("delay"); text != "" {
			wait, err := time.ParseDuration(text)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			delayed.Store(int64(wait))
		}
		switch listener := query.Get("listener"); listener {
		case "":
		case "close":
			app.close()
		case "open":
			if err := app.open(); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
				return
			}
		default:
			http.Error(w, fmt.Sprintf("found listener=%s, expected close or open", listener), http.StatusBadRequest)
			return
		}
		if text := query.Get("exit"); text != "" {
			code, err := strconv.Atoi(text)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			log.Printf("app ends by control code=%d", code)
			os.Exit(code)
		}
		fmt.Fprintf(w, "{\"requests\":%d,\"delay\":%q}\n", requests.Load(), time.Duration(delayed.Load()))
	})
	go func() { log.Fatal(http.ListenAndServe(*control, controls)) }()

	reason := <-stop
	log.Printf("app got signal=%q", reason)
	time.Sleep(*lingers)
	app.shutdown()
	log.Printf("app ended requests=%d", requests.Load())
}

// app is a server that can be taken from its port, with its connections, and put back.
type app struct {
	address string
	handler http.Handler
	lock    sync.Mutex
	server  *http.Server
}

func (a *app) open() error {
	a.lock.Lock()
	defer a.lock.Unlock()
	if a.server != nil {
		return nil
	}
	listener, err := net.Listen("tcp", a.address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: a.handler}
	a.server = server
	go server.Serve(listener)
	return nil
}

func (a *app) close() {
	a.lock.Lock()
	defer a.lock.Unlock()
	if a.server != nil {
		a.server.Close()
		a.server = nil
	}
}

func (a *app) shutdown() {
	a.lock.Lock()
	defer a.lock.Unlock()
	if a.server != nil {
		a.server.Shutdown(context.Background())
	}
}

// job works for a while and ends, as a Job's container does.
func job(arguments []string) {
	flags := flag.NewFlagSet("job", flag.ExitOnError)
	lasts := flags.Duration("lasts", time.Second, "how long it works")
	flags.Parse(arguments)
	log.Print("job started")
	time.Sleep(*lasts)
	log.Print("job ended")
}

// get prints what a URL answers.
func get(url string) {
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	fmt.Println(response.Status)
	io.Copy(os.Stdout, response.Body)
}

type stamped struct{}

func (stamped) Write(line []byte) (int, error) {
	return fmt.Fprintf(os.Stdout, "%s %s", time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), line)
}
