# gptloom. A new user's two commands:
#     make run     sets up what is missing, builds, gets real text, trains a GPT, shows its loss and a sample
#     make test    sets up what is missing, builds, runs the tests
# `make help` lists the rest.

VERSION := 0.1.0
BUILD   ?= build
PREFIX  ?= /usr/local
ifeq ($(origin CC),default)
    CC := gcc
endif
ifeq ($(origin CXX),default)
    CXX := g++
endif

# As many jobs as there are processors, unless -j says otherwise.
ifeq ($(filter -j% --jobs%,$(MAKEFLAGS)),)
    MAKEFLAGS += --jobs=$(shell nproc)
endif

# The machine to compile for; the program's bits are those of one build on one machine.
ARCH    ?= native
# Matrix products: auto takes oneDNN, else OpenBLAS, else our own plain C.
MATMUL  ?= auto
# address,undefined for a sanitizer build; keep it in a build folder of its own (make sanitize does).
SANITIZE ?=

# ------------------------------------------------------------------------------------------------- what is installed
links = $(shell echo 'int main(void) { return 0; }' | $(CC) -include $(1) -x c - $(2) -o /dev/null 2>/dev/null && echo yes)
ifeq ($(MATMUL),auto)
    ifeq ($(call links,oneapi/dnnl/dnnl.h,$(DNNL_CFLAGS) $(DNNL_LIBS) -ldnnl),yes)
        override MATMUL := onednn
    else ifeq ($(call links,cblas.h,-lopenblas),yes)
        override MATMUL := openblas
    else
        override MATMUL := plain
    endif
endif

MATMUL_LIBS_onednn   := $(DNNL_LIBS) -ldnnl
MATMUL_LIBS_openblas := -lopenblas
MATMUL_LIBS := $(MATMUL_LIBS_$(MATMUL))

# --------------------------------------------------------------------------------------------------------- compiling
# Sanitizers make gcc see null pointers in snprintf where there are none.
SANITIZE_FLAGS := $(if $(SANITIZE),-O1 -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer \
                    -Wno-format-truncation -DLOOM_DEBUG_FILL)
WARNINGS := -Wall -Wextra -Wno-missing-field-initializers -Werror -Wvla -Wshadow
COMMON   := -O3 -g -march=$(ARCH) -ffp-contract=fast -fopenmp -fno-math-errno -fno-trapping-math \
            $(WARNINGS) $(SANITIZE_FLAGS) -Iinclude -Icsrc -DLOOM_VERSION='"$(VERSION)"' -MMD -MP
CFLAGS_  := -std=c11 -D_GNU_SOURCE $(COMMON) -Wstrict-prototypes -Wmissing-prototypes $(DNNL_CFLAGS) $(CFLAGS)
# Only tests are C++: they are compiled more often than they wait for themselves.
CXXFLAGS_ := -std=c++17 $(COMMON) -O1 -g1 $(CXXFLAGS)
LIBS     := $(MATMUL_LIBS) -lcjson -linih -lxxhash -lm -lpthread

# ------------------------------------------------------------------------------------------------------------- sources
# csrc/cpu's ops are compiled twice, in float (the definition) and in double (the oracle); what makes a CPU device of
# them, and what is tuned beyond them, once.
PRODUCT_onednn   := csrc/cpu/matmul_library.c csrc/cpu/product_onednn.c
PRODUCT_openblas := csrc/cpu/matmul_library.c csrc/cpu/product_openblas.c
PRODUCT_plain    := csrc/cpu/matmul_plain.c
TUNED      := csrc/cpu/device.c csrc/cpu/peak.c $(PRODUCT_$(MATMUL))
DEFINITION := $(filter-out csrc/cpu/device.c csrc/cpu/peak.c csrc/cpu/matmul_% csrc/cpu/product_%,$(wildcard csrc/cpu/*.c))
HOST       := $(filter-out csrc/cpu/%,$(wildcard csrc/*/*.c))
# The step, the trainer and the run are part of the library; the rest of train/ is the program.
TRAIN_LIB  := $(addprefix train/,step.c trainer.c run.c options.c)
PROGRAM    := $(filter-out $(TRAIN_LIB),$(wildcard train/*.c train/*/*.c)) $(wildcard test/ops/*.c)

LIB_OBJECTS := $(HOST:%.c=$(BUILD)/obj/%.o) $(TRAIN_LIB:%.c=$(BUILD)/obj/%.o) $(TUNED:%.c=$(BUILD)/obj/%.o) \
               $(DEFINITION:csrc/cpu/%.c=$(BUILD)/obj/definition/%.o) $(DEFINITION:csrc/cpu/%.c=$(BUILD)/obj/oracle/%.o)
PROGRAM_OBJECTS := $(PROGRAM:%.c=$(BUILD)/obj/%.o)
# What tests link beside the library: the program without its main.
TEST_OBJECTS    := $(filter-out $(BUILD)/obj/train/main.o,$(PROGRAM_OBJECTS))
TESTS           := $(patsubst test/%.cpp,$(BUILD)/test/%,$(wildcard test/test_*.cpp))

# One short line per file; V=1 shows the commands.
V ?= 0
quiet = $(if $(filter 0,$(V)),@echo "  $(1) $@" &&,)

.SECONDARY:
.PHONY: all tests setup run test test-full sanitize install format clean help
all: $(BUILD)/gptloom $(BUILD)/libgptloom.a
tests: all $(TESTS)

$(BUILD)/libgptloom.a: $(LIB_OBJECTS)
	@rm -f $@
	$(call quiet,AR) $(AR) rcs $@ $^

$(BUILD)/gptloom: $(PROGRAM_OBJECTS) $(BUILD)/libgptloom.a
	$(call quiet,LD) $(CC) $(CFLAGS_) -o $@ $^ $(LIBS)

$(BUILD)/obj/definition/%.o: csrc/cpu/%.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -c $< -o $@

$(BUILD)/obj/oracle/%.o: csrc/cpu/%.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -DLOOM_ORACLE -c $< -o $@

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call quiet,CC) $(CC) $(CFLAGS_) -Itest -Itrain -c $< -o $@

$(BUILD)/obj/%.o: %.cpp
	@mkdir -p $(@D)
	$(call quiet,CXX) $(CXX) $(CXXFLAGS_) -Itest -Itrain -c $< -o $@

$(BUILD)/test/%: $(BUILD)/obj/test/%.o $(TEST_OBJECTS) $(BUILD)/libgptloom.a
	@mkdir -p $(@D)
	$(call quiet,LD) $(CXX) $(CXXFLAGS_) -o $@ $^ -lgtest -lgtest_main $(LIBS)

# ------------------------------------------------------------------------------------------------------ what users run
# Set-up may install what the lines above look for, so building is a make of its own.
setup:
	@dev/setup.sh

#  make run         set up, build, get a text, train a GPT, show its loss and a sample  (DATA=path DATA_URL=url)
run: setup
	@$(MAKE) --no-print-directory all
	@BUILD=$(BUILD) dev/first-run.sh

#  make test        set up, build, run the tests
test: setup
	@$(MAKE) --no-print-directory tests
	@test/run.py --logs $(BUILD)/test/logs $(TESTS)

#  make test-full   all tests, and again in sanitizer builds and with the other libraries for matrix products
FULL := $(TESTS) $(TESTS:$(BUILD)/%=$(BUILD)/sanitized/%) $(foreach m,openblas plain,$(BUILD)/$(m)/test/test_ops)
test-full: setup
	@MATMUL=openblas dev/setup.sh
	@$(MAKE) --no-print-directory tests
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/sanitized SANITIZE=address,undefined tests
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/openblas MATMUL=openblas all $(BUILD)/openblas/test/test_ops
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/plain MATMUL=plain all $(BUILD)/plain/test/test_ops
	@LOOM_TEST_FULL=1 test/run.py --logs $(BUILD)/test/logs $(FULL)

#  make sanitize    build/sanitized/gptloom, with AddressSanitizer and UndefinedBehaviorSanitizer
sanitize:
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/sanitized SANITIZE=address,undefined all

#  make install     program, library, headers and pkg-config file under PREFIX=/usr/local
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/gptloom
	install $(BUILD)/gptloom $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(BUILD)/libgptloom.a $(DESTDIR)$(PREFIX)/lib/
	install -m 644 include/gptloom/*.h $(DESTDIR)$(PREFIX)/include/gptloom/
	printf 'prefix=%s\n\nName: gptloom\nDescription: training GPT-style transformers in C\nVersion: %s\nCflags: -I$${prefix}/include\nLibs: -L$${prefix}/lib -lgptloom -fopenmp %s\n' \
	    '$(PREFIX)' '$(VERSION)' '$(LIBS)' > $(DESTDIR)$(PREFIX)/lib/pkgconfig/gptloom.pc

#  make format      clang-format on all sources
format:
	clang-format -i $(shell git ls-files '*.c' '*.h' '*.cpp')

#  make clean       remove the build folder
clean:
	rm -rf $(BUILD)

#  make help        this
help:
	@sed -n 's/^#  \(make [a-z-]* *.*\)/  \1/p' Makefile

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
