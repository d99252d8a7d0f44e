// Runs solution.js, then tests.js in the same global scope, and says how it ended, behind a token that the program does
// not know: it is read before the program is loaded and kept in this function's scope.
"use strict";
(function () {
  const fs = require("fs");
  const vm = require("vm");
  const write = fs.writeSync;
  const bytes = Buffer.alloc(33);
  fs.readSync(0, bytes, 0, 33, null);
  const token = bytes.toString("latin1").trim();
  const end = process.reallyExit.bind(process);
  const on = process.on.bind(process);
  const removeAllListeners = process.removeAllListeners.bind(process);
  const assert = require("assert");
  const AssertionError = assert.AssertionError;
  for (const part of [assert, assert.strict, AssertionError, AssertionError.prototype]) Object.freeze(part);
  function say(text) {
    write(1, "\n" + token + " " + text + "\n");
  }
  function fail(error, compiles) {
    const isFailure = error instanceof AssertionError;
    const kind = isFailure ? "failed" : compiles === false ? "compile" : "error";
    say(kind + " " + String((error && error.name) || "thrown") + ": " + String((error && error.message) || error));
    end(1);
  }
  // What a module has besides the globals; it cannot be put in the place of what the tests use.
  const exported = { exports: {} };
  const given = { require: require("module").createRequire("/tmp/"), module: exported, exports: exported.exports };
  for (const [name, value] of Object.entries({ ...given, __filename: "/tmp/solution.js", __dirname: "/tmp" })) {
    Object.defineProperty(globalThis, name, { value, writable: false, configurable: false, enumerable: false });
  }
  const apply = Reflect.apply;
  const runInThisContext = vm.Script.prototype.runInThisContext;
  const [solution, tests] = ["solution.js", "tests.js"].map(function (filename) {
    const text = fs.readFileSync(filename, "utf8");
    fs.unlinkSync(filename);
    try {
      return new vm.Script(text, { filename });
    } catch (error) {
      fail(error, false);
    }
  });
  on("uncaughtException", fail);
  on("unhandledRejection", fail);
  try {
    apply(runInThisContext, solution, []);
    apply(runInThisContext, tests, []);
  } catch (error) {
    fail(error);
  }
  // What is still to come, such as a promise's rejection, is heard by nobody else; "beforeExit" comes when nothing is
  // left to do, and not after process.exit().
  removeAllListeners();
  on("uncaughtException", fail);
  on("unhandledRejection", fail);
  on("beforeExit", function () {
    say("passed");
    end(0);
  });
})();
