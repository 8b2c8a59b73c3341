// The clients of the benchmark's part "clients": they post the same body in one of many forms, as
// fast as the answers come, and write the figures as one line of JSON.
//
// HTTP/1.x is written and read without a library, so that a request has exactly the bytes of its
// form. HTTP/2 is that of net/http.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	address     = flag.String("address", "", "host:port")
	form        = flag.String("form", "kept", "the form of the requests")
	payload     = flag.String("body", "", "the body")
	connections = flag.Int("connections", 32, "connections at a time")
	streams     = flag.Int("streams", 8, "streams of a connection of HTTP/2")
	seconds     = flag.Float64("seconds", 5, "duration")
	posts       = flag.Int64("posts", 1<<62, "requests at most")
	secure      = flag.Bool("tls", false, "with TLS")
	resume      = flag.Bool("resume", false, "resume TLS sessions")

	begun   int64
	refused int64
	broken  int64
	end     time.Time
)

// A Form is how a request is written.
type Form struct {
	version string
	headers string
	chunked bool
	fresh   bool // a new connection for each request
	expect  bool
	many    int // requests in one write
}

var forms = map[string]Form{
	"kept":         {version: "1.1"},
	"new":          {version: "1.1", fresh: true},
	"close":        {version: "1.1", fresh: true, headers: "Connection: close\r\n"},
	"http10":       {version: "1.0", fresh: true},
	"http10-close": {version: "1.0", fresh: true, headers: "Connection: close\r\n"},
	"http10-kept":  {version: "1.0", headers: "Connection: keep-alive\r\n"},
	"chunked":      {version: "1.1", chunked: true},
	"twice":        {version: "1.1", headers: "X-Trace: one\r\nX-Trace: two\r\n"},
	"expect":       {version: "1.1", expect: true, headers: "Expect: 100-continue\r\n"},
	"pipelined":    {version: "1.1", many: 8},
}

func (f Form) bytes() (head, body []byte) {
	length := fmt.Sprintf("Content-Length: %d\r\n", len(*payload))
	text := *payload
	if f.chunked {
		length = "Transfer-Encoding: chunked\r\n"
		text = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(*payload), *payload)
	}
	request := fmt.Sprintf("POST /v1/payloads HTTP/%s\r\nHost: %s\r\nUser-Agent: bench\r\n"+
		"Content-Type: application/json\r\n%s%s\r\n", f.version, *address, f.headers, length)
	return []byte(request), []byte(text)
}

// Take one of the requests that are left.
func more() bool {
	return atomic.AddInt64(&begun, 1) <= *posts && time.Now().Before(end)
}

type Client struct {
	form   Form
	head   []byte
	body   []byte
	config *tls.Config
	conn   net.Conn
	reader *bufio.Reader
	times  []time.Duration
}

func (c *Client) connect() error {
	conn, err := net.Dial("tcp", *address)
	if err != nil {
		return err
	}
	if *secure {
		conn = tls.Client(conn, c.config)
	}
	c.conn = conn
	c.reader.Reset(conn)
	return nil
}

// Read one answer; return its status, and whether the server keeps the connection.
func (c *Client) answer() (status int, kept bool, err error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if len(line) < 12 {
		return 0, false, errors.New("no status line")
	}
	status, err = strconv.Atoi(string(line[9:12]))
	kept = c.form.version == "1.1"
	length := 0
	for {
		if line, err = c.reader.ReadSlice('\n'); err != nil {
			return 0, false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch textproto.CanonicalMIMEHeaderKey(string(name)) {
		case "Content-Length":
			length, _ = strconv.Atoi(strings.TrimSpace(string(value)))
		case "Connection":
			kept = strings.EqualFold(strings.TrimSpace(string(value)), "keep-alive")
		}
	}
	_, err = c.reader.Discard(length)
	return status, kept, err
}

func (c *Client) exchange() error {
	if c.conn == nil {
		if err := c.connect(); err != nil {
			return err
		}
	}
	c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	count := 1
	if c.form.many > 0 {
		count = c.form.many
		atomic.AddInt64(&begun, int64(count-1))
	}
	var err error
	if c.form.expect {
		if _, err = c.conn.Write(c.head); err != nil {
			return err
		}
		if status, _, err := c.answer(); err != nil || status != 100 {
			return fmt.Errorf("%d instead of 100: %w", status, err)
		}
		_, err = c.conn.Write(c.body)
	} else {
		_, err = c.conn.Write(bytes.Repeat(append(c.head[:len(c.head):len(c.head)], c.body...), count))
	}
	if err != nil {
		return err
	}
	kept := true
	for ; count > 0; count-- {
		var status int
		if status, kept, err = c.answer(); err != nil {
			return err
		}
		if status >= 300 {
			atomic.AddInt64(&refused, 1)
		}
	}
	if c.form.fresh || !kept {
		c.conn.Close()
		c.conn = nil
	}
	return nil
}

func (c *Client) run() {
	for more() {
		started := time.Now()
		if err := c.exchange(); err != nil {
			if atomic.AddInt64(&broken, 1) == 1 {
				fmt.Fprintln(os.Stderr, err)
			}
			if c.conn != nil {
				c.conn.Close()
				c.conn = nil
			}
			continue
		}
		for n := 0; n < max(1, c.form.many); n++ {
			c.times = append(c.times, time.Since(started))
		}
	}
	if c.conn != nil {
		c.conn.Close()
	}
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}

func stream(transport *http.Transport) (times []time.Duration) {
	for more() {
		started := time.Now()
		request, _ := http.NewRequest("POST", "https://"+*address+"/v1/payloads",
			strings.NewReader(*payload))
		request.Header.Set("Content-Type", "application/json")
		answer, err := transport.RoundTrip(request)
		if err != nil {
			if atomic.AddInt64(&broken, 1) == 1 {
				fmt.Fprintln(os.Stderr, err)
			}
			continue
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if answer.StatusCode >= 300 || answer.ProtoMajor != 2 {
			atomic.AddInt64(&refused, 1)
		}
		times = append(times, time.Since(started))
	}
	return times
}

func main() {
	flag.Parse()
	end = time.Now().Add(time.Duration(*seconds * float64(time.Second)))
	// A benchmark: the certificate was made for it, and nothing is secret.
	config := &tls.Config{InsecureSkipVerify: true, ServerName: "127.0.0.1"}
	var (
		mutex   sync.Mutex
		group   sync.WaitGroup
		times   []time.Duration
		started = time.Now()
	)
	collect := func(run func() []time.Duration) {
		group.Add(1)
		go func() {
			defer group.Done()
			found := run()
			mutex.Lock()
			defer mutex.Unlock()
			times = append(times, found...)
		}()
	}
	for n := 0; n < *connections; n++ {
		own := config.Clone()
		if *resume {
			own.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		}
		if *form == "http2" {
			transport := &http.Transport{TLSClientConfig: own, ForceAttemptHTTP2: true}
			for m := 0; m < *streams; m++ {
				collect(func() []time.Duration { return stream(transport) })
			}
			continue
		}
		found, known := forms[*form]
		if !known {
			fmt.Fprintln(os.Stderr, "unknown form")
			os.Exit(2)
		}
		head, body := found.bytes()
		client := &Client{form: found, head: head, body: body, config: own,
			reader: bufio.NewReader(nil)}
		collect(func() []time.Duration { client.run(); return client.times })
	}
	group.Wait()
	taken := time.Since(started)
	sort.Slice(times, func(a, b int) bool { return times[a] < times[b] })
	at := func(share float64) int64 {
		if len(times) == 0 {
			return 0
		}
		return times[int(share*float64(len(times)-1))].Microseconds()
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"answers": len(times), "refused": refused, "broken": broken,
		"seconds": taken.Seconds(), "p50": at(0.5), "p99": at(0.99),
	})
}
