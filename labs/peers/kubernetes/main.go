// Kubernetes in one program, so that it is linked once: the first argument says which part of it this process is.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "which part of Kubernetes?")
		os.Exit(2)
	}
	// Each part reads its flags from behind its name.
	os.Args = os.Args[1:]
	var part *cobra.Command
	switch os.Args[0] {
	case "kube-apiserver":
		part = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		part = controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		part = scheduler.NewSchedulerCommand()
	case "kube-proxy":
		part = proxy.NewProxyCommand()
	case "kubelet":
		part = kubelet.NewKubeletCommand(context.Background())
	case "kubectl":
		part = kubectl.NewDefaultKubectlCommand()
	default:
		fmt.Fprintf(os.Stderr, "%s is no part of Kubernetes that is here\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(cli.Run(part))
}
