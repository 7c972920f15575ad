// libcni-call asks libcni for one verb, as a container runtime does: a request as JSON on standard input, the answer on standard output,
// {"result": ...} or {"error": {"code", "msg", "details"}}. With the list of what is to stay it calls GC, which cnitool cannot.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

type request struct {
	Verb         string               `json:"verb"`
	Network      string               `json:"network"`
	ConfDir      string               `json:"confDir"`
	BinDir       string               `json:"binDir"`
	CacheDir     string               `json:"cacheDir"`
	Container    string               `json:"container"`
	Netns        string               `json:"netns"`
	Capabilities map[string]any       `json:"capabilities"`
	Valid        []types.GCAttachment `json:"valid"`
}

type answer struct {
	Result any          `json:"result"`
	Error  *types.Error `json:"error,omitempty"`
}

func main() {
	result, err := call(context.Background())
	said := answer{Result: result}
	if err != nil && !errors.As(err, &said.Error) {
		said.Error = &types.Error{Msg: err.Error()}
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func call(ctx context.Context) (types.Result, error) {
	var asked request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return nil, err
	}
	list, err := libcni.LoadNetworkConf(asked.ConfDir, asked.Network)
	if err != nil {
		return nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{asked.BinDir}, asked.CacheDir, nil)
	pod := &libcni.RuntimeConf{
		ContainerID:    asked.Container,
		NetNS:          asked.Netns,
		IfName:         "eth0",
		CapabilityArgs: asked.Capabilities,
	}
	switch asked.Verb {
	case "add":
		return cni.AddNetworkList(ctx, list, pod)
	case "check":
		return nil, cni.CheckNetworkList(ctx, list, pod)
	case "del":
		return nil, cni.DelNetworkList(ctx, list, pod)
	case "gc":
		return nil, cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: asked.Valid})
	case "status":
		return nil, cni.GetStatusNetworkList(ctx, list)
	case "version":
		_, err := cni.ValidateNetworkList(ctx, list)
		return nil, err
	}
	return nil, fmt.Errorf("verb %q: add, check, del, gc, status and version are there", asked.Verb)
}
