// Celcost prints the CEL cost of admission policies, computed with the API server's own compiler and evaluator.
// An API server enforces the cost budget, but no API of it reports the cost.
//
//	celcost POLICIES.yaml < OBJECTS.json
//
// POLICIES.yaml is a stream of YAML documents. MutatingAdmissionPolicies (JSONPatch only) and
// ValidatingAdmissionPolicies are evaluated, other kinds are ignored.
//
// OBJECTS.json is a list of {"name": NAME, "object": OBJECT, "namespace": METADATA}. The namespace is the metadata of the
// object's Namespace; it is required for namespaced objects and ignored for Namespaces.
//
// Each object is evaluated as a CREATE request, against each policy whose resourceRules match it. Selectors and
// matchConditions are not applied. The output is a JSON list, one entry for each policy and object.
//
// The exit code is 1 if the input is invalid (no output), or if a policy does not compile (with output).
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	// The types that can be decoded, with Kubernetes' own defaults.
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
)

// The scheme of kube-apiserver: the same Go types as client-go's scheme, and the defaults as well.
var (
	scheme = legacyscheme.Scheme
	strict = serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
)

// decode returns the typed object with its defaults, which is what policies get to see. Unknown fields are errors.
func decode(data []byte) (runtime.Object, error) {
	object, _, err := strict.Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	scheme.Default(object)
	return object, nil
}

// request is the creation of one object.
type request struct {
	name       string
	attributes admission.Attributes
	// The value of `namespaceObject`; nil for a cluster-scoped object.
	namespace *corev1.Namespace
}

func readRequests(input io.Reader) ([]request, error) {
	var entries []struct {
		Name      string             `json:"name"`
		Object    json.RawMessage    `json:"object"`
		Namespace *metav1.ObjectMeta `json:"namespace"`
	}
	if err := json.NewDecoder(input).Decode(&entries); err != nil {
		return nil, fmt.Errorf("standard input is not a list of objects: %w", err)
	}
	requests := make([]request, 0, len(entries))
	for index, entry := range entries {
		request, err := newRequest(entry.Name, entry.Object, entry.Namespace)
		if err != nil {
			return nil, fmt.Errorf("object %d, %q: %w", index, entry.Name, err)
		}
		requests = append(requests, request)
	}
	return requests, nil
}

func newRequest(name string, data []byte, metadata *metav1.ObjectMeta) (request, error) {
	object, err := decode(data)
	if err != nil {
		return request{}, err
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		return request{}, err
	}
	kind := object.GetObjectKind().GroupVersionKind()
	resource, _ := meta.UnsafeGuessKindToResource(kind)

	// As kube-apiserver does for a creation: a Namespace is its own namespace and has no `namespaceObject`; other objects
	// get the namespace of the request.
	requestNamespace, namespace := accessor.GetName(), (*corev1.Namespace)(nil)
	if _, ok := object.(*corev1.Namespace); !ok {
		if metadata == nil || metadata.Name == "" {
			return request{}, fmt.Errorf("expected the metadata of its namespace, with a name")
		}
		namespace = &corev1.Namespace{ObjectMeta: *metadata}
		// Every Namespace of an API server has this label.
		metav1.SetMetaDataLabel(&namespace.ObjectMeta, corev1.LabelMetadataName, metadata.Name)
		scheme.Default(namespace)
		requestNamespace = metadata.Name
		accessor.SetNamespace(requestNamespace)
	}
	attributes := admission.NewAttributesRecord(object, nil, kind, requestNamespace, accessor.GetName(), resource, "",
		admission.Create, &metav1.CreateOptions{}, false, &user.DefaultInfo{Name: "celcost"})
	return request{name, attributes, namespace}, nil
}

func run(file string, input io.Reader, output io.Writer) error {
	policies, err := readPolicies(file)
	if err != nil {
		return err
	}
	requests, err := readRequests(input)
	if err != nil {
		return err
	}
	results, broken := []result{}, 0
	for _, policy := range policies {
		for _, message := range policy.compileErrors {
			fmt.Fprintf(os.Stderr, "celcost: %s %s: %s\n", policy.kind, policy.name, message)
			broken++
		}
		for _, request := range requests {
			if policy.matches(request) {
				results = append(results, policy.evaluate(request))
			}
		}
	}
	encoder := json.NewEncoder(output)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		return err
	}
	if broken > 0 {
		return fmt.Errorf("expressions that do not compile: %d", broken)
	}
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: celcost POLICIES.yaml < OBJECTS.json")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "celcost: %v\n", err)
		os.Exit(1)
	}
}
