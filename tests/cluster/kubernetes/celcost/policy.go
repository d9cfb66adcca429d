package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	celtypes "github.com/google/cel-go/common/types"
	reviewv1 "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/cel/environment"
	sigsyaml "sigs.k8s.io/yaml"
)

// With this budget an evaluation is not stopped early, so that the cost of a policy over its budget is known as well.
// The limit of one expression, PerCallLimit, still applies.
const unlimited = math.MaxInt64

// result is one entry of the output.
type result struct {
	Policy string `json:"policy"`
	Kind   string `json:"kind"`
	Object string `json:"object"`
	// The sum over variables, mutations, validations and message expressions. A variable is charged again by each
	// mutation that uses it, and by the message expressions beside the validations: the API server keeps no values in between.
	Cost int64 `json:"cost"`
	// What the API server allows for each mutation, or for all validations and messages of a policy.
	Budget        int64    `json:"budget"`
	CompileErrors []string `json:"compileErrors"`
	// Why the API server would fail to evaluate the policy; empty if it would not.
	Error string `json:"error"`
}

// policy is a compiled policy.
type policy struct {
	kind, name    string
	match         *admissionv1.MatchResources
	compiler      *plugincel.CompositedCompiler
	compileErrors []string

	// Of a MutatingAdmissionPolicy.
	mutations []plugincel.MutatingEvaluator
	// Of a ValidatingAdmissionPolicy; both have an entry for each validation.
	validations, messages plugincel.ConditionEvaluator
}

func readPolicies(file string) ([]*policy, error) {
	reader, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	documents := yaml.NewYAMLReader(bufio.NewReader(reader))
	var policies []*policy
	for number := 1; ; number++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		policy, err := readPolicy(document)
		if err != nil {
			return nil, fmt.Errorf("%s, document %d: %w", file, number, err)
		}
		if policy != nil {
			policies = append(policies, policy)
		}
	}
	if len(policies) == 0 {
		return nil, fmt.Errorf("%s has no admission policy", file)
	}
	return policies, nil
}

// readPolicy returns nil for another kind.
func readPolicy(document []byte) (*policy, error) {
	var kind metav1.TypeMeta
	if err := sigsyaml.Unmarshal(document, &kind); err != nil {
		return nil, err
	}
	group, _, _ := strings.Cut(kind.APIVersion, "/")
	if group != admissionv1.GroupName || !strings.HasSuffix(kind.Kind, "AdmissionPolicy") {
		return nil, nil
	}
	object, err := decode(document)
	if err != nil {
		return nil, err
	}
	switch object := object.(type) {
	case *admissionv1.MutatingAdmissionPolicy:
		return compileMutating(object)
	case *admissionv1.ValidatingAdmissionPolicy:
		return compileValidating(object)
	default:
		return nil, fmt.Errorf("%s is not supported, expected %s", kind.APIVersion, admissionv1.SchemeGroupVersion)
	}
}

var (
	// Expressions of a policy may use these variables. Message expressions have no `authorizer`.
	declared        = plugincel.OptionalVariableDeclarations{HasAuthorizer: true}
	messageDeclared = plugincel.OptionalVariableDeclarations{}
	patchDeclared   = plugincel.OptionalVariableDeclarations{HasAuthorizer: true, HasPatchTypes: true}
	bound           = plugincel.OptionalVariableBindings{Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer()}
	messageBound    = plugincel.OptionalVariableBindings{}
)

// newPolicy compiles what both kinds have in common.
func newPolicy(kind, name string, params *admissionv1.ParamKind, match *admissionv1.MatchResources,
	variables []admissionv1.Variable, conditions []admissionv1.MatchCondition) (*policy, error) {
	if params != nil {
		return nil, fmt.Errorf("%s %s: policies with a paramKind are not supported", kind, name)
	}
	compiler, err := plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		return nil, err
	}
	p := &policy{kind: kind, name: name, match: match, compiler: compiler, compileErrors: []string{}}
	for _, variable := range variables {
		compiled := compiler.CompileAndStoreVariable(&validating.Variable{Name: variable.Name, Expression: variable.Expression},
			declared, environment.StoredExpressions)
		if compiled.Error != nil {
			p.broken(compiled.Error, "variable %s", variable.Name)
		}
	}
	// They have a budget of their own, and are only compiled here.
	for i := range conditions {
		p.condition((*matchconditions.MatchCondition)(&conditions[i]), declared, "matchCondition %s", conditions[i].Name)
	}
	return p, nil
}

func compileMutating(object *admissionv1.MutatingAdmissionPolicy) (*policy, error) {
	spec := &object.Spec
	p, err := newPolicy("MutatingAdmissionPolicy", object.Name, spec.ParamKind, spec.MatchConstraints, spec.Variables, spec.MatchConditions)
	if err != nil {
		return nil, err
	}
	for i, mutation := range spec.Mutations {
		if mutation.JSONPatch == nil {
			return nil, fmt.Errorf("%s %s: mutation %d has the patchType %s, only JSONPatch is supported", p.kind, p.name, i, mutation.PatchType)
		}
		accessor := &patch.JSONPatchCondition{Expression: mutation.JSONPatch.Expression}
		evaluator := p.compiler.CompileMutatingEvaluator(accessor, patchDeclared, environment.StoredExpressions)
		for _, err := range evaluator.CompilationErrors() {
			p.broken(err, "mutation %d", i)
		}
		p.mutations = append(p.mutations, evaluator)
	}
	return p, nil
}

func compileValidating(object *admissionv1.ValidatingAdmissionPolicy) (*policy, error) {
	spec := &object.Spec
	p, err := newPolicy("ValidatingAdmissionPolicy", object.Name, spec.ParamKind, spec.MatchConstraints, spec.Variables, spec.MatchConditions)
	if err != nil {
		return nil, err
	}
	validations := make([]plugincel.ExpressionAccessor, len(spec.Validations))
	messages := make([]plugincel.ExpressionAccessor, len(spec.Validations))
	for i, validation := range spec.Validations {
		validations[i] = &validating.ValidationCondition{Expression: validation.Expression}
		p.condition(validations[i], declared, "validation %d, expression", i)
		// A validation without one has no entry here.
		if validation.MessageExpression != "" {
			messages[i] = &validating.MessageExpressionCondition{MessageExpression: validation.MessageExpression}
			p.condition(messages[i], messageDeclared, "validation %d, messageExpression", i)
		}
	}
	// They have a budget of their own, and are only compiled here.
	for _, annotation := range spec.AuditAnnotations {
		accessor := &validating.AuditAnnotationCondition{Key: annotation.Key, ValueExpression: annotation.ValueExpression}
		p.condition(accessor, declared, "auditAnnotation %s", annotation.Key)
	}
	p.validations = p.compiler.CompileCondition(validations, declared, environment.StoredExpressions)
	p.messages = p.compiler.CompileCondition(messages, messageDeclared, environment.StoredExpressions)
	return p, nil
}

func (p *policy) broken(err error, place string, arguments ...any) {
	p.compileErrors = append(p.compileErrors, fmt.Sprintf(place, arguments...)+": "+err.Error())
}

// condition compiles one expression for its error, which then has its place.
func (p *policy) condition(expression plugincel.ExpressionAccessor, declared plugincel.OptionalVariableDeclarations, place string, arguments ...any) {
	compiled := p.compiler.CompileCELExpression(expression, declared, environment.StoredExpressions)
	if compiled.Error != nil {
		p.broken(compiled.Error, place, arguments...)
	}
}

// matches applies the resource rules and nothing else of matchConstraints.
func (p *policy) matches(request request) bool {
	if p.match == nil {
		return false
	}
	anyOf := func(list []admissionv1.NamedRuleWithOperations) bool {
		for _, rule := range list {
			matcher := rules.Matcher{Rule: rule.RuleWithOperations, Attr: request.attributes}
			named := len(rule.ResourceNames) == 0
			for _, name := range rule.ResourceNames {
				named = named || name == request.attributes.GetName()
			}
			if named && matcher.Matches() {
				return true
			}
		}
		return false
	}
	return anyOf(p.match.ResourceRules) && !anyOf(p.match.ExcludeResourceRules)
}

func (p *policy) evaluate(request request) result {
	r := result{Policy: p.name, Kind: p.kind, Object: request.name, Budget: celconfig.RuntimeCELCostBudget, CompileErrors: p.compileErrors}
	if len(p.compileErrors) > 0 {
		return r
	}
	interfaces := admission.NewObjectInterfacesFromScheme(scheme)
	versioned, err := admission.NewVersionedAttributes(request.attributes, request.attributes.GetKind(), interfaces)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	if p.validations != nil {
		r.Cost, err = p.validate(request, versioned)
	} else {
		r.Cost, err = p.mutate(request, versioned, interfaces)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// mutate evaluates and applies the mutations in their order. Each has the whole budget.
func (p *policy) mutate(request request, versioned *admission.VersionedAttributes, interfaces admission.ObjectInterfaces) (int64, error) {
	var total int64
	for i, evaluator := range p.mutations {
		evaluation, left, err := evaluator.ForInput(p.compiler.CreateContext(context.Background()), versioned,
			admissionRequest(versioned), bound, request.namespace, unlimited)
		if err == nil {
			total += unlimited - left
			err = errors.Join(evaluation.Error, withinBudget(unlimited-left))
		}
		if err != nil {
			return total, fmt.Errorf("mutation %d: %w", i, err)
		}
		// The next one sees the patched object, and a patch that does not apply is an error.
		patched, err := patch.NewJSONPatcher(evaluator).Patch(p.compiler.CreateContext(context.Background()), patch.Request{
			MatchedResource:     versioned.GetResource(),
			VersionedAttributes: versioned,
			ObjectInterfaces:    interfaces,
			OptionalVariables:   bound,
			Namespace:           request.namespace,
		}, unlimited)
		if err != nil {
			return total, fmt.Errorf("mutation %d: %w", i, err)
		}
		scheme.Default(patched)
		versioned.UpdateObject(patched)
	}
	return total, nil
}

// validate evaluates the validations, and then all message expressions with what is left of the budget, as the API server
// does whether the validations hold or not.
func (p *policy) validate(request request, versioned *admission.VersionedAttributes) (int64, error) {
	namespace := plugincel.CreateNamespaceObject(request.namespace)
	evaluations, left, err := p.validations.ForInput(context.Background(), versioned, admissionRequest(versioned), bound, namespace, unlimited)
	if err != nil {
		return 0, err
	}
	messages, left, err := p.messages.ForInput(context.Background(), versioned, admissionRequest(versioned), messageBound, namespace, left)
	if err != nil {
		return 0, err
	}
	total := unlimited - left
	problems := []error{withinBudget(total)}
	for i, evaluation := range evaluations {
		if evaluation.Error != nil {
			problems = append(problems, fmt.Errorf("validation %d: %w", i, evaluation.Error))
		} else if messages[i].Error != nil && evaluation.EvalResult != celtypes.True {
			// The message of a validation that holds is not used, and neither is its error.
			problems = append(problems, fmt.Errorf("validation %d, messageExpression: %w", i, messages[i].Error))
		}
	}
	return total, errors.Join(problems...)
}

func withinBudget(cost int64) error {
	if cost > celconfig.RuntimeCELCostBudget {
		return fmt.Errorf("the cost %d is over the budget of %d", cost, celconfig.RuntimeCELCostBudget)
	}
	return nil
}

func admissionRequest(versioned *admission.VersionedAttributes) *reviewv1.AdmissionRequest {
	return plugincel.CreateAdmissionRequest(versioned.Attributes, metav1.GroupVersionResource(versioned.GetResource()),
		metav1.GroupVersionKind(versioned.VersionedKind))
}
