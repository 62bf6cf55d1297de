// Classify one image over HTTPS with Go's own library: FIELDMARK_KEY=... go run classify.go IMAGE HOST:PORT
// SSL_CERT_FILE names the authority's certificate where it is not one of the usual ones.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

type answer struct {
	Message     string
	Predictions []struct {
		Label       string
		Probability float64
	}
	Adversarial struct {
		PValue  float64 `json:"p_value"`
		Flagged bool
	}
}

func classify(image, address string) (answer, error) {
	var said answer
	content, err := os.ReadFile(image)
	if err != nil {
		return said, err
	}
	body, err := json.Marshal(map[string]any{"image": content, "top_k": 3}) // bytes become base64
	if err != nil {
		return said, err
	}
	request, err := http.NewRequest("POST", "https://"+address+"/v1/classify", bytes.NewReader(body))
	if err != nil {
		return said, err
	}
	request.Header.Set("content-type", "application/json")
	request.Header.Set("x-api-key", os.Getenv("FIELDMARK_KEY"))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return said, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&said); err != nil {
		return said, err
	}
	if response.StatusCode != http.StatusOK {
		return said, fmt.Errorf("%s: %s", response.Status, said.Message)
	}
	return said, nil
}

func main() {
	said, err := classify(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, each := range said.Predictions {
		fmt.Printf("%s: %.3f\n", each.Label, each.Probability)
	}
	fmt.Printf("p-value %.4f, flagged: %t\n", said.Adversarial.PValue, said.Adversarial.Flagged)
}
