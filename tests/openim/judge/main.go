// The judge: OpenIM's own code, driven over a pipe.
//
// Reads one JSON object a line and writes one a line, in order. What is judged is judged by the server's own packages:
// callbackstruct for the structs and Parse, webhook for the client.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/openimsdk/open-im-server/v3/pkg/callbackstruct"
	"github.com/openimsdk/open-im-server/v3/pkg/common/config"
	"github.com/openimsdk/open-im-server/v3/pkg/common/webhook"
	"github.com/openimsdk/protocol/constant"
	"github.com/openimsdk/tools/errs"
)

// job is what is asked.
type job struct {
	// Do is "commands", "read", "request", "call", "async", "post", "steady", "messages" or "batch".
	Do string `json:"do"`
	// Command selects the structs.
	Command string `json:"command"`
	// Answer, for "read": the bytes of an answer. For "request": those of a callback's body.
	Answer []byte `json:"answer"`
	// URL, for "call": webhooks.url.
	URL string `json:"url"`
	// OperationID, for "call".
	OperationID string `json:"operationID"`
	// Timeout, for "call": whole seconds, as in webhooks.yml.
	Timeout int `json:"timeout"`
	// Request, for "call": decoded into the command's request struct, or sent as it is when Raw is set.
	Request json.RawMessage `json:"request"`
	// Raw, for "call": the command is newer than this module.
	Raw bool `json:"raw"`
	// Jobs, for "batch": all at once.
	Jobs []job `json:"jobs"`
	// Times, for "call": how many at once. One when it is 0.
	Times int `json:"times"`
	// Rounds, for "steady": how many calls each of Times makes, one after another. Or Until: they go on until this file is
	// there, for five minutes at most.
	Rounds int    `json:"rounds"`
	Until  string `json:"until"`
	// Pause, for "steady" and "messages": milliseconds between two calls.
	Pause int `json:"pause"`
	// After, for "messages": the after-command, and AfterRequest its request.
	After        string          `json:"after"`
	AfterRequest json.RawMessage `json:"afterRequest"`
}

// conclusion is what OpenIM made of it.
type conclusion struct {
	// Verdict is "allowed", "denied" or "error".
	Verdict string `json:"verdict"`
	Code    int    `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	Detail  string `json:"detail,omitempty"`
	// Response is the struct as OpenIM holds it.
	Response any     `json:"response,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
}

// conclude tells a denial from a failure: OpenIM's data error is 90007, its network error 90004, and both are
// coded errors as a denial is. Which it was is known from where it came from, so the caller says so.
func conclude(err error, failed bool, response any) conclusion {
	if err == nil {
		return conclusion{Verdict: "allowed", Response: response}
	}
	verdict := "denied"
	if failed {
		verdict = "error"
	}
	var coded errs.CodeError
	if errors.As(err, &coded) {
		return conclusion{verdict, coded.Code(), coded.Msg(), coded.Detail(), response, 0}
	}
	return conclusion{Verdict: "error", Message: err.Error()}
}

// watched notes whether Parse was reached: before it, an error is a failure and not a denial.
type watched struct {
	callbackstruct.CallbackResp
	parsed bool
}

func (w *watched) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, w.CallbackResp) }

func (w *watched) Parse() error {
	w.parsed = true
	return w.CallbackResp.Parse()
}

// raw is a request of a command that this module has no struct for.
type raw struct {
	command string
	body    json.RawMessage
}

func (r raw) GetCallbackCommand() string   { return r.command }
func (r raw) MarshalJSON() ([]byte, error) { return r.body, nil }

func read(j job) conclusion {
	pair, known := commands[j.Command]
	if !known {
		return conclusion{Verdict: "error", Message: "no such command"}
	}
	response := pair.response()
	if err := json.Unmarshal(j.Answer, response); err != nil {
		return conclusion{Verdict: "error", Code: 90007, Message: err.Error()}
	}
	return conclude(response.Parse(), false, response)
}

// decoded is what an app that uses OpenIM's own structs makes of a callback's body.
type decoded struct {
	// Valid is whether it is JSON.
	Valid bool `json:"valid"`
	// Fits is whether it is decoded into the command's struct without an error.
	Fits bool `json:"fits"`
	// Command is what the struct says that it is.
	Command string `json:"command"`
}

func request(j job) any {
	pair, known := commands[j.Command]
	if !known {
		return conclusion{Verdict: "error", Message: "no such command"}
	}
	into := pair.request()
	err := json.Unmarshal(j.Answer, into)
	return decoded{json.Valid(j.Answer), err == nil, into.GetCallbackCommand()}
}

var (
	clientsLock sync.Mutex
	clients     = map[string]*webhook.Client{}
)

// client gives one client for each URL, as each process of OpenIM has one.
func client(url string) *webhook.Client {
	clientsLock.Lock()
	defer clientsLock.Unlock()
	if clients[url] == nil {
		clients[url] = webhook.NewWebhookClient(url)
	}
	return clients[url]
}

func call(j job) conclusion {
	var request callbackstruct.CallbackReq
	var response callbackstruct.CallbackResp
	if pair, known := commands[j.Command]; known && !j.Raw {
		request, response = pair.request(), pair.response()
		if err := json.Unmarshal(j.Request, request); err != nil {
			return conclusion{Verdict: "error", Message: "the request does not fit its struct: " + err.Error()}
		}
	} else {
		request, response = raw{j.Command, j.Request}, &callbackstruct.CommonCallbackResp{}
	}
	ctx := context.WithValue(context.Background(), constant.OperationID, j.OperationID)
	seen := &watched{CallbackResp: response}
	began := time.Now()
	err := client(j.URL).SyncPost(ctx, j.Command, request, seen, &config.BeforeConfig{Enable: true, Timeout: j.Timeout})
	out := conclude(err, !seen.parsed, response)
	out.Seconds = time.Since(began).Seconds()
	return out
}

// async posts an after-command as OpenIM does, and waits until its answer was parsed or the time is up.
func async(j job) conclusion {
	pair, known := commands[j.Command]
	if !known {
		return conclusion{Verdict: "error", Message: "no such command"}
	}
	request, response := pair.request(), pair.response()
	if err := json.Unmarshal(j.Request, request); err != nil {
		return conclusion{Verdict: "error", Message: "the request does not fit its struct: " + err.Error()}
	}
	ctx := context.WithValue(context.Background(), constant.OperationID, j.OperationID)
	parsed := make(chan error, 1)
	client(j.URL).AsyncPost(ctx, j.Command, request, &told{response, parsed}, &config.AfterConfig{Enable: true, Timeout: j.Timeout})
	select {
	case err := <-parsed:
		return conclude(err, false, response)
	case <-time.After(time.Duration(j.Timeout+1) * time.Second):
		return conclusion{Verdict: "error", Message: "no answer was parsed"}
	}
}

// told tells when its answer is parsed: AsyncPost itself tells nobody.
type told struct {
	callbackstruct.CallbackResp
	parsed chan error
}

func (t *told) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, t.CallbackResp) }

func (t *told) Parse() error {
	err := t.CallbackResp.Parse()
	t.parsed <- err
	return err
}

func many(j job) []conclusion {
	out := make([]conclusion, j.Times)
	var group sync.WaitGroup
	for i := range out {
		group.Add(1)
		go func() {
			defer group.Done()
			out[i] = call(j)
		}()
	}
	group.Wait()
	return out
}

// post sends a body as it is with the transport that OpenIM's client makes: for what newer servers send and this
// version's client does not. A key goes into the query as AsyncPostWithQuery puts it there.
func post(j job) conclusion {
	request, err := http.NewRequest(http.MethodPost, j.URL, bytes.NewReader(j.Request))
	if err != nil {
		return conclusion{Verdict: "error", Message: err.Error()}
	}
	request.Header.Set("Content-Type", "application/json; charset=utf-8")
	request.Header.Set(constant.OperationID, j.OperationID)
	answer, err := plain.Do(request)
	if err != nil {
		return conclusion{Verdict: "error", Message: err.Error()}
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return conclusion{Verdict: "error", Message: err.Error()}
	}
	var response callbackstruct.CommonCallbackResp
	if err := json.Unmarshal(body, &response); err != nil {
		return conclusion{Verdict: "error", Code: 90007, Message: err.Error()}
	}
	return conclude(response.Parse(), false, response)
}

var plain = &http.Client{Transport: &http.Transport{MaxConnsPerHost: 100}, Timeout: 15 * time.Second}

// steady calls one after another, some at once, until it is told to stop, and says how each ended.
func steady(j job) any {
	begun := time.Now()
	goesOn := func(round int) bool {
		if j.Rounds > 0 {
			return round < j.Rounds
		}
		_, err := os.Stat(j.Until)
		return err != nil && time.Since(begun) < 5*time.Minute
	}
	counts := map[string]int{}
	var lock sync.Mutex
	var group sync.WaitGroup
	for range j.Times {
		group.Add(1)
		go func() {
			defer group.Done()
			for round := 0; goesOn(round); round++ {
				c := call(j)
				said := c.Verdict
				if said == "error" {
					said = fmt.Sprintf("error %d %s", c.Code, c.Message)
				}
				lock.Lock()
				counts[said]++
				lock.Unlock()
				time.Sleep(time.Duration(j.Pause) * time.Millisecond)
			}
		}()
	}
	group.Wait()
	return counts
}

// messages does for each of Times messages what OpenIM's SendMsg does: it asks about the message, if Command is set, and then
// reports it with AsyncPost, which waits for 3 s if its queue is full. Gives the milliseconds that each sender waited. In the
// requests OPERATION stands for the ID of the message.
func messages(j job) any {
	waited := make([]float64, 0, j.Times)
	for i := range j.Times {
		id := fmt.Sprintf("message-%d", i)
		filled := func(request json.RawMessage, into any) error {
			return json.Unmarshal(bytes.ReplaceAll(request, []byte("OPERATION"), []byte(id)), into)
		}
		after := commands[j.After]
		event, response := after.request(), after.response()
		if err := filled(j.AfterRequest, event); err != nil {
			return conclusion{Verdict: "error", Message: "the request does not fit its struct: " + err.Error()}
		}
		began := time.Now()
		if j.Command != "" {
			before := j
			before.OperationID = id
			before.Request = bytes.ReplaceAll(j.Request, []byte("OPERATION"), []byte(id))
			if c := call(before); c.Verdict != "allowed" {
				return c
			}
		}
		ctx := context.WithValue(context.Background(), constant.OperationID, id)
		client(j.URL).AsyncPost(ctx, j.After, event, response, &config.AfterConfig{Enable: true, Timeout: j.Timeout})
		waited = append(waited, float64(time.Since(began).Microseconds())/1000)
		time.Sleep(time.Duration(j.Pause) * time.Millisecond)
	}
	return waited
}

func batch(jobs []job) []any {
	out := make([]any, len(jobs))
	var group sync.WaitGroup
	for i, j := range jobs {
		group.Add(1)
		go func() {
			defer group.Done()
			out[i] = do(j)
		}()
	}
	group.Wait()
	return out
}

func do(j job) any {
	switch {
	case j.Do == "commands":
		names := make([]string, 0, len(commands))
		for name := range commands {
			names = append(names, name)
		}
		return names
	case j.Do == "read":
		return read(j)
	case j.Do == "request":
		return request(j)
	case j.Do == "call" && j.Times > 1:
		return many(j)
	case j.Do == "call":
		return call(j)
	case j.Do == "async":
		return async(j)
	case j.Do == "post":
		return post(j)
	case j.Do == "steady":
		return steady(j)
	case j.Do == "messages":
		return messages(j)
	case j.Do == "batch":
		return batch(j.Jobs)
	default:
		return conclusion{Verdict: "error", Message: "nothing is called " + j.Do}
	}
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	// OpenIM's log took hold of standard output before main began: the conclusions get a descriptor of their own, and
	// what is written to the old one goes where errors go.
	own, err := syscall.Dup(1)
	if err == nil {
		err = syscall.Dup3(2, 1, 0)
	}
	if err != nil {
		panic(err)
	}
	out := bufio.NewWriterSize(os.NewFile(uintptr(own), "conclusions"), 1<<20)
	for {
		line, err := in.ReadString('\n')
		if strings.TrimSpace(line) == "" {
			if err != nil {
				return
			}
			continue
		}
		var j job
		var result any
		if err := json.Unmarshal([]byte(line), &j); err != nil {
			result = conclusion{Verdict: "error", Message: "not a job: " + err.Error()}
		} else {
			result = do(j)
		}
		encoded, err := json.Marshal(result)
		if err != nil {
			encoded = []byte(fmt.Sprintf(`{"verdict":"error","message":%q}`, err.Error()))
		}
		out.Write(encoded)
		out.WriteByte('\n')
		if in.Buffered() == 0 {
			out.Flush()
		}
	}
}
