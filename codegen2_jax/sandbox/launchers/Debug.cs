// Compiled together with each program, in place of the library's class, whose assertions only print and whose listeners
// a solution could remove. The members that programs use are here; an assertion that does not hold throws.
namespace System.Diagnostics {
    public class AssertionFailed : Exception {
        public AssertionFailed(string message) : base(message) { }
    }

    public static class Debug {
        public static void Assert(bool condition) {
            Assert(condition, "Debug.Assert");
        }

        public static void Assert(bool condition, string message) {
            if (!condition) {
                Fail(message);
            }
        }

        public static void Assert(bool condition, string message, string detail) {
            Assert(condition, message + " " + detail);
        }

        public static void Assert(bool condition, string message, string detail, params object[] arguments) {
            Assert(condition, message + " " + String.Format(detail, arguments));
        }

        public static void Fail(string message) {
            throw new AssertionFailed(message);
        }

        public static void Fail(string message, string detail) {
            Fail(message + " " + detail);
        }

        public static void Write(object value) {
            Console.Error.Write(value);
        }

        public static void WriteLine(object value) {
            Console.Error.WriteLine(value);
        }

        public static void WriteLine(string format, params object[] arguments) {
            Console.Error.WriteLine(format, arguments);
        }

        public static void WriteIf(bool condition, object value) {
            if (condition) {
                Write(value);
            }
        }

        public static void WriteLineIf(bool condition, object value) {
            if (condition) {
                WriteLine(value);
            }
        }

        public static void Print(string format, params object[] arguments) {
            WriteLine(format, arguments);
        }

        public static void Flush() { }
    }
}
