# requirements.lock without PyTorch, and what only its CUDA build needs: see Dockerfile.
/^[A-Za-z0-9]/ { left_out = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ }
!left_out
