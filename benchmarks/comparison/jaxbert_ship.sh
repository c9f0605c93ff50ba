# The student is what jaxbert_classifier.sh has left.
jaxbert export task --to=shipped --format=onnx,onnx-int8
