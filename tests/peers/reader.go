// Readers that handle signals as Go programs do: the runtime has handlers for nearly all, and sends SIGURG to its own
// threads all the time, to take the processor from a goroutine that doesn't give it up.
//
//	reader read PATH OFFSET LENGTH HOW     one pread
//	reader fault PATH OFFSET LENGTH HOW    the same bytes through a mapping
//
// HOW: "plain", or "count": CHLD, URG, ALRM and WINCH are asked for and counted. It prints "waiting" before it reads,
// and then "read N SUM" (the FNV-1a of the bytes) or "error ERRNO", and how often each of its signals came. Beside the
// reader goroutines run that keep the runtime preempting. The system calls are called directly: package os would try
// again after EINTR, and nobody would see it.
package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

var harmless = [4]syscall.Signal{syscall.SIGCHLD, syscall.SIGURG, syscall.SIGALRM, syscall.SIGWINCH}
var came [4]int64

func count() {
	for i, number := range harmless {
		channel := make(chan os.Signal, 16)
		signal.Notify(channel, number)
		go func(i int) {
			for range channel {
				atomic.AddInt64(&came[i], 1)
			}
		}(i)
	}
}

// busy computes without a pause that the runtime could use, for as long as a blink, and then sleeps.
func busy() {
	for {
		sum := 0
		for i := 0; i < 30_000_000; i++ {
			sum += i * i
		}
		runtime.KeepAlive(sum)
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
}

func tell(outcome string) {
	fmt.Printf("%s caught %d %d %d %d\n", outcome, atomic.LoadInt64(&came[0]), atomic.LoadInt64(&came[1]),
		atomic.LoadInt64(&came[2]), atomic.LoadInt64(&came[3]))
}

func number(text string) int64 {
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	path, offset, length := os.Args[2], number(os.Args[3]), int(number(os.Args[4]))
	if os.Args[5] == "count" {
		count()
	}
	file, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	go busy()
	bytes := make([]byte, length)
	if os.Args[1] == "fault" {
		mapped, err := syscall.Mmap(file, 0, int(offset)+length, syscall.PROT_READ, syscall.MAP_PRIVATE)
		if err != nil {
			panic(err)
		}
		fmt.Println("waiting")
		copy(bytes, mapped[offset:])
	} else {
		fmt.Println("waiting")
		got, err := syscall.Pread(file, bytes, offset)
		if err != nil {
			tell(fmt.Sprintf("error %d", err.(syscall.Errno)))
			return
		}
		bytes = bytes[:got]
	}
	// What was pending until now is counted by goroutines of its own.
	time.Sleep(100 * time.Millisecond)
	hash := fnv.New64a()
	hash.Write(bytes)
	tell(fmt.Sprintf("read %d %016x", len(bytes), hash.Sum64()))
}
