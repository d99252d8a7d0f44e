// Runs program.js (a solution with its tests behind it) and says how it ended, behind a token that the program
// does not know: it is read before the program is loaded and kept in this function's scope.
"use strict";
(function () {
  const fs = require("fs");
  const write = fs.writeSync;
  const bytes = Buffer.alloc(33);
  fs.readSync(0, bytes, 0, 33, null);
  const token = bytes.toString("latin1").trim();
  const end = process.reallyExit.bind(process);
  const assert = require("assert");
  const AssertionError = assert.AssertionError;
  for (const part of [assert, assert.strict, AssertionError, AssertionError.prototype]) Object.freeze(part);
  let ran = false;
  function say(text) {
    write(1, "\n" + token + " " + text + "\n");
  }
  function fail(error) {
    const isFailure = error instanceof AssertionError;
    const isSyntax = error instanceof SyntaxError && !ran;
    const kind = isFailure ? "failed" : isSyntax ? "compile" : "error";
    say(kind + " " + String((error && error.name) || "thrown") + ": " + String((error && error.message) || error));
    end(1);
  }
  process.on("uncaughtException", fail);
  process.on("unhandledRejection", fail);
  // "beforeExit" comes when nothing is left to do, and not after process.exit().
  process.on("beforeExit", function () {
    if (ran) {
      say("passed");
      end(0);
    }
  });
  try {
    const load = require("module").createRequire("/tmp/");
    load("./program.js");
    ran = true;
  } catch (error) {
    fail(error);
  }
})();
